#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "base/hash.h"
#include "base/json.h"
#include "io/safetensors.h"

namespace distil_xlstm::io {
namespace {

// A new file, written from front to back.
class OutputFile {
 public:
  explicit OutputFile(const fs::path& path)
      : path_(path), descriptor_(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (descriptor_ < 0) fail("cannot create it");
  }
  ~OutputFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), std::min<size_t>(bytes.size(), size_t{1} << 30));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("cannot write to it");
      bytes = bytes.subspan(static_cast<size_t>(written));
    }
  }

  void finish() {
    if (::fsync(descriptor_) != 0) fail("cannot sync it");
    if (::close(std::exchange(descriptor_, -1)) != 0) fail("cannot close it");
  }

 private:
  [[noreturn]] void fail(std::string_view what) const { throw IoError("{}: {}: {}", path_.string(), what, std::strerror(errno)); }

  fs::path path_;
  int descriptor_;
};

void check_tensors(const std::vector<TensorView>& tensors, const fs::path& path) {
  std::set<std::string_view> seen;
  for (const TensorView& tensor : tensors) {
    if (!seen.insert(tensor.name).second) throw ValueError("{}: tensor '{}' is given twice", path.string(), tensor.name);
    if (tensor.name == "__metadata__") throw ValueError("{}: a tensor cannot be named __metadata__", path.string());
    if (is_quantized(tensor.dtype)) {
      throw ValueError("{}: tensor '{}' is {}, which safetensors does not have", path.string(), tensor.name, traits(tensor.dtype).name);
    }
    const size_t expected = storage_bytes(tensor.dtype, checked_elements(tensor.shape, tensor.name));
    if (tensor.bytes.size() != expected) {
      throw ValueError("{}: tensor '{}' [{}] takes {} bytes, {} are given", path.string(), tensor.name, fmt::join(tensor.shape, ", "),
                       expected, tensor.bytes.size());
    }
  }
}

std::string make_header(const std::vector<TensorView>& tensors, const std::map<std::string, std::string>& metadata) {
  // Built as text: an ordered JSON object would look through all earlier keys at each insertion.
  std::string header = "{";
  if (!metadata.empty()) header += "\"__metadata__\":" + nlohmann::json(metadata).dump();
  size_t offset = 0;
  for (const TensorView& tensor : tensors) {
    if (header.size() > 1) header += ',';
    header += fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", nlohmann::json(tensor.name).dump(),
                          traits(tensor.dtype).name, fmt::join(tensor.shape, ","), offset, offset + tensor.bytes.size());
    offset += tensor.bytes.size();
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  return header;
}

}  // namespace

void write_safetensors(const fs::path& path, const std::vector<TensorView>& tensors, const std::map<std::string, std::string>& metadata,
                       bool has_checksum) {
  check_tensors(tensors, path);
  std::vector<TensorView> ordered = tensors;
  std::stable_sort(ordered.begin(), ordered.end(),
                   [](const TensorView& a, const TensorView& b) { return traits(a.dtype).block_bytes > traits(b.dtype).block_bytes; });
  auto described = metadata;
  if (has_checksum) {
    Xxh3Stream hash;
    for (const TensorView& tensor : ordered) hash.update(tensor.bytes);
    described[kDataChecksum] = fmt::format("{:016x}", hash.digest());
  }
  const std::string header = make_header(ordered, described);
  const uint64_t length = header.size();
  OutputFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(std::as_bytes(std::span(header)));
  for (const TensorView& tensor : ordered) file.write(tensor.bytes);
  file.finish();
}

}  // namespace distil_xlstm::io
