#include "data/shard_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/hash.h"
#include "data/shard_directory.h"

namespace distil_xlstm::data {

namespace {

// A file that is written forward through a buffer, with its header last.
class OutputFile {
 public:
  OutputFile(fs::path path, bool keep_content) : path_(std::move(path)) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | (keep_content ? 0 : O_TRUNC), 0644);
    if (fd_ < 0) fail("open");
  }
  ~OutputFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void append(std::span<const std::byte> bytes) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    if (buffer_.size() >= kBufferBytes) flush();
  }
  void flush() {
    write_at(size_, buffer_);
    size_ += buffer_.size();
    buffer_.clear();
  }
  void write_at(uint64_t offset, std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail("write");
      bytes = bytes.subspan(static_cast<size_t>(written));
      offset += static_cast<uint64_t>(written);
    }
  }
  void truncate(uint64_t size) {
    struct stat info{};
    if (::fstat(fd_, &info) != 0) fail("stat");
    if (static_cast<uint64_t>(info.st_size) < size) {
      throw DataError("{}: {} bytes, but the journal says that {} were written: prepare again with --overwrite", path_.string(),
                      info.st_size, size);
    }
    if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) fail("truncate");
    size_ = size;
  }
  void sync() {
    flush();
    if (::fsync(fd_) != 0) fail("sync");
  }
  [[nodiscard]] uint64_t size() const { return size_ + buffer_.size(); }

 private:
  static constexpr size_t kBufferBytes = 1 << 20;
  [[noreturn]] void fail(std::string_view action) const {
    throw IoError("{}: cannot {}: {}", path_.string(), action, std::strerror(errno));
  }

  fs::path path_;
  int fd_ = -1;
  uint64_t size_ = 0;  // in the file; the buffer comes behind it
  std::vector<std::byte> buffer_;
};

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

json binary(std::span<const std::byte> bytes) {
  const auto* first = reinterpret_cast<const uint8_t*>(bytes.data());
  return json::binary(std::vector<uint8_t>(first, first + bytes.size()));
}

std::vector<uint8_t> bytes_at(const json& open, std::string_view key, const std::string& where) {
  const auto value = require<json>(open, key, where);
  if (!value.is_binary()) throw DataError("{}: key '{}' holds no bytes: damaged: begin again with --overwrite", where, key);
  return value.get_binary();
}

}  // namespace

struct ShardWriter::Impl {
  fs::path directory;
  ShardSettings settings;
  uint64_t id_size = 2;
  uint64_t capacity = 0;  // ids a full shard stores
  std::string metadata;

  // The open shard.
  std::unique_ptr<OutputFile> file;
  std::unique_ptr<Xxh3Stream> tokens_hash;
  uint64_t num_stored = 0;
  uint64_t num_own_documents = 0;  // without a border on the id shared with the shard before
  std::vector<uint64_t> borders;
  bool masked = false;             // some id of this shard does not count
  std::vector<uint8_t> mask_bits;  // of all its ids, once one does not

  // The id that the next shard begins with.
  int32_t last_id = 0;
  bool last_is_border = false;
  bool last_counts = true;

  uint32_t index = 0;
  int64_t total_tokens = 0;
  int64_t total_documents = 0;
  bool finished = false;
  std::vector<ShardSummary> done;

  [[nodiscard]] std::string name(uint32_t number) const {
    return fmt::format("{}-{:05}{}", split_name(settings.split), number, kShardExtension);
  }
  [[nodiscard]] fs::path final_path(uint32_t number) const { return directory / name(number); }
  [[nodiscard]] fs::path partial_path(uint32_t number) const { return directory / (name(number) + ".partial"); }
  [[nodiscard]] uint64_t tokens_offset() const { return align_section(align_section(sizeof(ShardHeader)) + metadata.size()); }

  void pad_to(uint64_t offset) {
    const std::vector<std::byte> zeros(offset - file->size());
    file->append(zeros);
  }

  void open_shard() {
    file = std::make_unique<OutputFile>(partial_path(index), false);
    tokens_hash = std::make_unique<Xxh3Stream>();
    num_stored = 0;
    num_own_documents = 0;
    borders.clear();
    mask_bits.clear();
    masked = false;
    pad_to(align_section(sizeof(ShardHeader)));
    file->append(bytes_of(metadata));
    pad_to(tokens_offset());
    if (index > 0) {
      const uint8_t counts = last_counts ? 1 : 0;
      if (last_is_border) borders.push_back(0);
      store({&last_id, 1}, {&counts, 1});
    }
  }

  void store(std::span<const int32_t> ids, std::span<const uint8_t> counts) {
    if (id_size == 4) {
      write_ids(std::as_bytes(ids));
    } else {
      const std::vector<uint16_t> narrow(ids.begin(), ids.end());
      write_ids(std::as_bytes(std::span(narrow)));
    }
    if (!masked && !std::ranges::all_of(counts, [](uint8_t count) { return count != 0; })) begin_mask();
    if (masked) {
      mask_bits.resize((num_stored + ids.size() + 7) / 8);
      for (size_t i = 0; i < ids.size(); ++i) {
        const uint64_t place = num_stored + i;
        if (counts.empty() || counts[i] != 0) mask_bits[place / 8] = static_cast<uint8_t>(mask_bits[place / 8] | (1U << (place % 8)));
      }
    }
    num_stored += ids.size();
  }

  // All ids so far counted.
  void begin_mask() {
    masked = true;
    mask_bits.assign((num_stored + 7) / 8, 0xff);
    if (num_stored % 8 != 0) mask_bits.back() = static_cast<uint8_t>((1U << (num_stored % 8)) - 1);
  }

  void write_ids(std::span<const std::byte> bytes) {
    tokens_hash->update(bytes);
    file->append(bytes);
  }

  [[nodiscard]] ShardHeader describe(uint64_t num_rows) const {
    ShardHeader header;
    header.id_size = static_cast<uint32_t>(id_size);
    header.flags = (settings.synthetic ? ShardHeader::kSynthetic : 0) | (masked ? ShardHeader::kHasLossMask : 0) |
                   (index > 0 ? ShardHeader::kContinues : 0);
    header.context_length = static_cast<uint64_t>(settings.context_length);
    header.vocab_size = static_cast<uint64_t>(settings.vocab_size);
    header.num_rows = num_rows;
    header.num_tokens = num_stored;
    header.num_borders = borders.size();
    header.bos_id = settings.bos_id.value_or(-1);
    header.document_end_id = settings.document_end_id.value_or(-1);
    header.index = index;
    header.split = static_cast<uint32_t>(settings.split);
    std::copy(settings.tokenizer_fingerprint.begin(), settings.tokenizer_fingerprint.end(), header.fingerprint.begin());
    return header;
  }

  void close_shard() {
    const auto length = static_cast<uint64_t>(settings.context_length);
    const uint64_t num_rows = std::max<uint64_t>(1, (num_stored - 1 + length - 1) / length);
    ShardHeader header = describe(num_rows);
    // In parts: a short text may leave most of a very long row to padding.
    const std::vector<std::byte> zeros(std::min<uint64_t>((num_rows * length + 1 - num_stored) * id_size, 1 << 20));
    for (uint64_t left = (num_rows * length + 1 - num_stored) * id_size; left > 0;) {
      const uint64_t now = std::min<uint64_t>(left, zeros.size());
      write_ids(std::span(zeros).first(now));
      left -= now;
    }
    header.metadata = {align_section(sizeof header), metadata.size(), xxh3_64(bytes_of(metadata))};
    header.tokens = {tokens_offset(), file->size() - tokens_offset(), tokens_hash->digest()};
    mask_bits.resize(masked ? (num_rows * length + 1 + 7) / 8 : 0);
    const auto append_section = [&](std::span<const std::byte> bytes) {
      pad_to(align_section(file->size()));
      const uint64_t offset = file->size();
      file->append(bytes);
      return ShardHeader::Section{offset, bytes.size(), xxh3_64(bytes)};
    };
    header.borders = append_section(std::as_bytes(std::span(borders)));
    header.loss_mask = append_section(std::as_bytes(std::span(mask_bits)));
    header.checksum = xxh3_64(std::as_bytes(std::span(&header, 1)).first(offsetof(ShardHeader, checksum)));
    file->flush();
    file->write_at(0, std::as_bytes(std::span(&header, 1)));
    file->sync();
    file.reset();
    fs::rename(partial_path(index), final_path(index));
    sync_path(directory);
    done.push_back({name(index), static_cast<int64_t>(num_rows), static_cast<int64_t>(num_stored) - (index > 0 ? 1 : 0),
                    static_cast<int64_t>(num_own_documents), fmt::format("{:016x}", header.checksum)});
    ++index;
  }

  // What was closed before an interruption is still as it was.
  void check_done() const {
    for (const ShardSummary& shard : done) {
      if (const std::string fault = fault_of_shard(directory, shard); !fault.empty())
        throw DataError("{}: {}: begin again with --overwrite", directory.string(), fault);
    }
  }

  void check_ids(std::span<const int32_t> ids) const {
    for (const int32_t id : ids) {
      if (id < 0 || id >= settings.vocab_size) {
        throw ValueError("{}: id {} is outside the tokenizer's vocabulary of {}", name(index), id, settings.vocab_size);
      }
      if (settings.num_rows > 0 && id >= settings.num_rows) throw NoRow(id);
    }
  }
};

ShardWriter::ShardWriter(fs::path directory, ShardSettings settings) : impl_(std::make_unique<Impl>()) {
  if (settings.context_length < 1 || settings.context_length >= (int64_t{1} << 31)) {
    throw ConfigError("context_length = {}: it must be at least 1 and below 2^31", settings.context_length);
  }
  if (settings.vocab_size < 1 || settings.vocab_size > (int64_t{1} << 31)) {
    throw ConfigError("vocab_size = {}: it must be at least 1 and at most 2^31", settings.vocab_size);
  }
  if (settings.tokenizer_fingerprint.size() > 63) {
    throw ConfigError("tokenizer fingerprint '{}': at most 63 characters fit into a shard", settings.tokenizer_fingerprint);
  }
  for (const auto& id : {settings.bos_id, settings.document_end_id}) {
    if (id && (*id < 0 || *id >= settings.vocab_size)) {
      throw ConfigError("special token {} is outside the tokenizer's vocabulary of {}", *id, settings.vocab_size);
    }
  }
  impl_->id_size = settings.vocab_size <= 65536 ? 2 : 4;
  const auto length = static_cast<uint64_t>(settings.context_length);
  impl_->capacity = std::max<uint64_t>(1, settings.shard_bytes / impl_->id_size / length) * length + 1;
  impl_->metadata = settings.source.dump(-1, ' ', false, json::error_handler_t::replace);
  impl_->directory = std::move(directory);
  impl_->settings = std::move(settings);
  std::error_code error;
  fs::create_directories(impl_->directory, error);
  if (error) throw IoError("{}: cannot make the directory: {}", impl_->directory.string(), error.message());
}

ShardWriter::~ShardWriter() = default;

void ShardWriter::add(std::span<const int32_t> ids, std::span<const uint8_t> counts, bool begins_document) {
  auto& s = *impl_;
  if (s.finished) throw ValueError("{}: a document after finish()", s.directory.string());
  if (!counts.empty() && counts.size() != ids.size())
    throw ValueError("ShardWriter: {} ids, but {} mask entries", ids.size(), counts.size());
  if (ids.empty()) return;
  s.check_ids(ids);
  bool border = begins_document || s.total_tokens == 0;
  s.total_tokens += static_cast<int64_t>(ids.size());
  if (border) ++s.total_documents;
  while (!ids.empty()) {
    if (s.file && s.num_stored == s.capacity) s.close_shard();
    if (!s.file) s.open_shard();
    if (border) {
      s.borders.push_back(s.num_stored);
      ++s.num_own_documents;
    }
    const size_t now = std::min<uint64_t>(ids.size(), s.capacity - s.num_stored);
    s.store(ids.first(now), counts.empty() ? counts : counts.first(now));
    s.last_id = ids[now - 1];
    s.last_counts = counts.empty() || counts[now - 1] != 0;
    s.last_is_border = border && now == 1;
    border = false;
    ids = ids.subspan(now);
    if (!counts.empty()) counts = counts.subspan(now);
  }
}

void ShardWriter::finish() {
  if (impl_->file) impl_->close_shard();
  impl_->finished = true;
}

int64_t ShardWriter::num_tokens() const {
  return impl_->total_tokens;
}
int64_t ShardWriter::num_documents() const {
  return impl_->total_documents;
}
const std::vector<ShardSummary>& ShardWriter::shards() const {
  return impl_->done;
}

json ShardWriter::save() {
  auto& s = *impl_;
  json state;
  state["index"] = s.index;
  state["total_tokens"] = s.total_tokens;
  state["total_documents"] = s.total_documents;
  state["last_id"] = s.last_id;
  state["last_is_border"] = s.last_is_border;
  state["last_counts"] = s.last_counts;
  state["shards"] = to_json(s.done);
  if (s.file) {
    s.file->sync();
    state["open"] = {{"num_stored", s.num_stored},
                     {"num_own_documents", s.num_own_documents},
                     {"masked", s.masked},
                     {"tokens_xxh3", s.tokens_hash->digest()},
                     {"borders", binary(std::as_bytes(std::span(s.borders)))},
                     {"mask_bits", binary(std::as_bytes(std::span(s.mask_bits)))}};
  }
  return state;
}

void ShardWriter::restore(const json& state) {
  auto& s = *impl_;
  const std::string where = s.directory.string() + ": journal";
  s.index = require<uint32_t>(state, "index", where);
  s.total_tokens = require<int64_t>(state, "total_tokens", where);
  s.total_documents = require<int64_t>(state, "total_documents", where);
  s.last_id = require<int32_t>(state, "last_id", where);
  s.last_is_border = require<bool>(state, "last_is_border", where);
  s.last_counts = require<bool>(state, "last_counts", where);
  s.done = shard_summaries(require<json>(state, "shards", where), where);
  s.check_done();
  const bool is_open = state.contains("open");
  // The shard that was open may have been completed since: it is taken back. What came later still is made again.
  if (is_open && !fs::exists(s.partial_path(s.index)) && fs::exists(s.final_path(s.index))) {
    fs::rename(s.final_path(s.index), s.partial_path(s.index));
  }
  remove_shards(s.directory, s.settings.split, is_open ? s.index + 1 : s.index);
  if (!is_open) return;

  const json& open = state["open"];
  const std::vector<uint8_t> borders = bytes_at(open, "borders", where);
  s.borders.resize(borders.size() / sizeof(uint64_t));
  if (!s.borders.empty()) std::memcpy(s.borders.data(), borders.data(), s.borders.size() * sizeof(uint64_t));
  s.mask_bits = bytes_at(open, "mask_bits", where);
  s.masked = require<bool>(open, "masked", where);
  s.num_stored = require<uint64_t>(open, "num_stored", where);
  s.num_own_documents = require<uint64_t>(open, "num_own_documents", where);
  if (s.num_stored < 1 || s.num_stored > s.capacity || (s.masked && s.mask_bits.size() != (s.num_stored + 7) / 8))
    throw DataError("{}: its counts do not fit each other: damaged: begin again with --overwrite", where);
  const uint64_t size_bytes = s.num_stored * s.id_size;
  s.file = std::make_unique<OutputFile>(s.partial_path(s.index), true);
  s.file->truncate(s.tokens_offset() + size_bytes);
  s.tokens_hash = std::make_unique<Xxh3Stream>();
  s.tokens_hash->update(MappedFile(s.partial_path(s.index)).bytes().subspan(s.tokens_offset(), size_bytes));
  if (s.tokens_hash->digest() != get_or<uint64_t>(open, "tokens_xxh3", s.tokens_hash->digest(), where)) {
    throw DataError("{}: not what the journal says was written: damaged: begin again with --overwrite", s.partial_path(s.index).string());
  }
}

}  // namespace distil_xlstm::data
