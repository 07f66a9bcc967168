#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/foreign_content.h"
#include "base/hash.h"
#include "base/json_limits.h"

namespace distil_xlstm::io {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors and GGUF are mapped as little-endian");

constexpr size_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation

using Header = nlohmann::json;

std::string where_of(const fs::path& path, std::string_view tensor) {
  return fmt::format("{}: tensor '{}'", path.string(), tensor);
}

// The header's text, its length checked.
std::string_view header_text(const MappedFile& file) {
  const std::span<const std::byte> bytes = file.bytes();
  const std::string name = file.path().string();
  throw_if_foreign({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, name, ContentKind::binary);
  if (bytes.size() < kLengthBytes) {
    throw DataError("{}: the file has {} bytes, too few for a safetensors file: the download is incomplete", name, bytes.size());
  }
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof length);
  if (length > kMaxHeaderBytes) {
    throw DataError("{}: header length {} is above the limit of {}: this is not a safetensors file", name, length, kMaxHeaderBytes);
  }
  if (length > bytes.size() - kLengthBytes) {
    throw DataError("{}: header says {} bytes, the file has {}: the download is incomplete", name, kLengthBytes + length, bytes.size());
  }
  return {reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length};
}

Header parse_header(std::string_view text, const fs::path& path) {
  if (const auto place = json_too_deep_at(text)) {
    throw DataError(
        "{}: the header has more than {} levels of lists and objects inside each other (at byte {}): this is not a safetensors file",
        path.string(), kMaxJsonDepth, *place);
  }
  Header header;
  try {
    header = Header::parse(text);
  } catch (const nlohmann::json::exception& error) {
    throw DataError("{}: the header is not JSON ({}): this is not a safetensors file", path.string(), error.what());
  }
  if (!header.is_object()) throw DataError("{}: the header is not a JSON object", path.string());
  if (const auto twice = repeated_key(text)) throw DataError("{}: tensor '{}' is in the header twice", path.string(), *twice);
  return header;
}

// A list of numbers that fit int64_t and are not negative.
std::vector<int64_t> sizes_of(const Header& entry, const char* key, const std::string& where) {
  const auto it = entry.find(key);
  if (it == entry.end()) throw DataError("{}: key '{}' is missing", where, key);
  if (!it->is_array()) throw DataError("{}: {} is not a list", where, key);
  std::vector<int64_t> sizes;
  for (const Header& value : *it) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      throw DataError("{}: {} holds {}, which is not a size", where, key, value.dump(-1, ' ', true, Header::error_handler_t::replace));
    }
    sizes.push_back(static_cast<int64_t>(value.get<uint64_t>()));
  }
  return sizes;
}

struct Entry {
  TensorView tensor;
  size_t begin = 0, end = 0;  // within the data
};

Entry parse_entry(const std::string& name, const Header& value, const fs::path& path) {
  const std::string where = where_of(path, name);
  if (!value.is_object()) throw DataError("{}: its entry is not an object", where);
  const auto dtype = value.find("dtype");
  if (dtype == value.end() || !dtype->is_string()) throw DataError("{}: key 'dtype' is missing or no string", where);
  Entry entry;
  entry.tensor.name = name;
  entry.tensor.dtype = dtype_from_name(dtype->get_ref<const std::string&>(), where);
  entry.tensor.shape = sizes_of(value, "shape", where);
  const std::vector<int64_t> offsets = sizes_of(value, "data_offsets", where);
  if (offsets.size() != 2 || offsets[0] > offsets[1]) throw DataError("{}: data_offsets must be [begin, end] with begin <= end", where);
  entry.begin = static_cast<size_t>(offsets[0]);
  entry.end = static_cast<size_t>(offsets[1]);
  const size_t expected = storage_bytes(entry.tensor.dtype, checked_elements(entry.tensor.shape, where));
  if (expected != entry.end - entry.begin) {
    throw DataError("{}: {} {} takes {} bytes, its data_offsets hold {}", where, traits(entry.tensor.dtype).name,
                    fmt::format("[{}]", fmt::join(entry.tensor.shape, ", ")), expected, entry.end - entry.begin);
  }
  return entry;
}

std::map<std::string, std::string> parse_metadata(const Header& value, const fs::path& path) {
  std::map<std::string, std::string> metadata;
  if (!value.is_object()) throw DataError("{}: __metadata__ is not an object", path.string());
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) throw DataError("{}: __metadata__ key '{}' is not a string", path.string(), key);
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

// The data must be covered exactly once, from the first byte to the last.
void check_layout(const std::vector<Entry>& entries, size_t data_begin, size_t file_size, const fs::path& path) {
  size_t end = 0;
  for (const Entry& entry : entries) end = std::max(end, entry.end);
  const size_t data_size = file_size - data_begin;
  if (end > data_size) {
    throw DataError("{}: header says {} bytes, the file has {}: the download is incomplete", path.string(), data_begin + end, file_size);
  }
  size_t expected = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != expected) {
      throw DataError("{}: its data begin at {}, where {} is expected: {}", where_of(path, entry.tensor.name), entry.begin, expected,
                      entry.begin < expected ? "it overlaps another tensor" : "there is a gap before it");
    }
    expected = entry.end;
  }
  if (end < data_size) throw DataError("{}: {} bytes follow the last tensor: the file is corrupt", path.string(), data_size - end);
}

}  // namespace

SafetensorsFile::SafetensorsFile(const fs::path& path) : file_(path) {
  const std::string_view text = header_text(file_);
  const Header header = parse_header(text, path);
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      metadata_ = parse_metadata(value, path);
    } else {
      entries.push_back(parse_entry(name, value, path));
    }
  }
  // Empty tensors come before the one that begins at the same place.
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  const size_t data_begin = kLengthBytes + text.size();
  check_layout(entries, data_begin, file_.bytes().size(), path);
  for (Entry& entry : entries) {
    entry.tensor.bytes = file_.bytes().subspan(data_begin + entry.begin, entry.end - entry.begin);
    index_.emplace(entry.tensor.name, tensors_.size());
    tensors_.push_back(std::move(entry.tensor));
  }
}

void SafetensorsFile::check_data() const {
  const auto recorded = metadata_.find(kDataChecksum);
  if (recorded == metadata_.end()) return;
  Xxh3Stream hash;
  for (const TensorView& tensor : tensors_) hash.update(tensor.bytes);
  if (const auto actual = fmt::format("{:016x}", hash.digest()); actual != recorded->second) {
    throw DataError(
        "{}: XXH3-64 of its data is {}, its metadata recorded {}: the content is damaged. (Who changed the weights on purpose leaves the "
        "key "
        "{} out of the metadata.)",
        path().string(), actual, recorded->second, kDataChecksum);
  }
}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

const TensorView& SafetensorsFile::at(std::string_view name) const {
  if (const TensorView* tensor = find(name)) return *tensor;
  throw DataError("{}: tensor '{}' is missing", path().string(), name);
}

}  // namespace distil_xlstm::io
