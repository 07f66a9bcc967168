#include "data/token_shard.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "base/foreign_content.h"
#include "base/hash.h"
#include "base/text.h"
#include "data/journal.h"

namespace distil_xlstm::data {

static_assert(std::endian::native == std::endian::little, "shards are read in place: this machine's byte order must be theirs");

std::string_view split_name(Split split) {
  return split == Split::train ? "train" : "validation";
}

namespace {

constexpr uint32_t kKnownFlags = ShardHeader::kSynthetic | ShardHeader::kHasLossMask | ShardHeader::kContinues;
constexpr uint64_t kMaxVocabulary = uint64_t{1} << 31;
constexpr uint64_t kMaxCount = uint64_t{1} << 48;  // of rows, tokens: products with an id's size stay far from overflow

bool is_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

template <typename Id>
uint32_t max_id(std::span<const std::byte> bytes) {
  const auto* ids = reinterpret_cast<const Id*>(bytes.data());
  Id greatest = 0;
  for (size_t i = 0; i < bytes.size() / sizeof(Id); ++i) greatest = std::max(greatest, ids[i]);
  return greatest;
}

ShardHeader read_header(const MappedFile& file) {
  const auto bytes = file.bytes();
  const std::string where = file.path().string();
  throw_if_foreign({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, where, ContentKind::binary);
  ShardHeader header;
  if (bytes.size() < sizeof header) {
    throw DataError("{}: {} bytes, but a token shard begins with a header of {}: the file is cut short or no shard", where, bytes.size(),
                    sizeof header);
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.magic != ShardHeader{}.magic) throw DataError("{}: not a token shard (it does not begin with DXTOKENS)", where);
  if (header.version != 1) {
    throw DataError("{}: token shard version {}, this program reads version 1: prepare the text again", where, header.version);
  }
  const uint64_t checksum = xxh3_64(bytes.first(offsetof(ShardHeader, checksum)));
  if (checksum != header.checksum)
    throw DataError("{}: the header's checksum is wrong: the file is damaged, prepare the text again", where);
  return header;
}

}  // namespace

TokenShard::TokenShard(const fs::path& path, bool verify_content) : file_(path), header_(read_header(file_)) {
  check_layout();
  const auto borders = section(header_.borders);
  borders_ = {reinterpret_cast<const uint64_t*>(borders.data()), borders.size() / sizeof(uint64_t)};
  check_content();
  const auto text = section(header_.metadata);
  metadata_ = parse_json({reinterpret_cast<const char*>(text.data()), text.size()}, path.string() + ": metadata");
  if (!metadata_.is_object()) throw DataError("{}: metadata is not a JSON object", path.string());
  if (!verify_content) return;

  const auto tokens = section(header_.tokens);
  if (xxh3_64(tokens) != header_.tokens.checksum) {
    throw DataError("{}: the checksum of its tokens is wrong: the file is damaged, prepare the text again", path.string());
  }
  if (const int64_t greatest = greatest_id(); greatest >= static_cast<int64_t>(header_.vocab_size)) {
    throw DataError("{}: holds id {}, but its vocabulary has {} ids", path.string(), greatest, header_.vocab_size);
  }
  if (!is_zero(tokens.subspan(header_.num_tokens * header_.id_size))) throw DataError("{}: its padding is not zero", path.string());
}

// Sizes and places only: after this every access that the class makes stays inside the file.
void TokenShard::check_layout() const {
  const auto& h = header_;
  const std::string where = path().string();
  auto check = [&](bool holds, std::string_view what) {
    if (!holds) throw DataError("{}: header: {}: the file is damaged or was not written by this program", where, what);
  };
  check(h.header_size == sizeof h && h.reserved == 0, "size is not 256");
  check((h.flags & ~kKnownFlags) == 0, fmt::format("unknown flags {:#x}", h.flags));
  check(h.split <= 1, fmt::format("unknown split {}", h.split));
  check(h.vocab_size >= 1 && h.vocab_size <= kMaxVocabulary, fmt::format("vocab_size {} is out of range", h.vocab_size));
  check(h.id_size == (h.vocab_size <= 65536 ? 2U : 4U), fmt::format("ids of {} bytes", h.id_size));
  check(h.context_length >= 1 && h.context_length < kMaxVocabulary, fmt::format("context_length {} is out of range", h.context_length));
  check(h.num_rows >= 1 && h.num_rows <= kMaxCount / h.context_length, fmt::format("num_rows {} is out of range", h.num_rows));
  const uint64_t capacity = h.num_rows * h.context_length + 1;
  const uint64_t least = h.num_rows == 1 ? 1 : capacity - h.context_length + 1;
  check(h.num_tokens >= least && h.num_tokens <= capacity, fmt::format("{} tokens do not fill {} rows", h.num_tokens, h.num_rows));
  check(h.num_borders <= h.num_tokens, fmt::format("{} documents in {} tokens", h.num_borders, h.num_tokens));
  const auto vocabulary = static_cast<int64_t>(h.vocab_size);
  check(h.bos_id >= -1 && h.bos_id < vocabulary, fmt::format("BOS id {}", h.bos_id));
  check(h.document_end_id >= -1 && h.document_end_id < vocabulary, fmt::format("document end id {}", h.document_end_id));
  check(h.fingerprint.back() == 0 && is_zero(std::as_bytes(std::span(h.fingerprint)).subspan(fingerprint().size())),
        "the fingerprint is not filled up with zeros");

  check(h.tokens.size == capacity * h.id_size, "the size of the tokens does not follow from the counts");
  check(h.borders.size == h.num_borders * sizeof(uint64_t), "the size of the borders does not follow from the counts");
  check(h.loss_mask.size == (has_loss_mask() ? (capacity + 7) / 8 : 0), "the size of the loss mask does not follow from the counts");
  const auto bytes = file_.bytes();
  check(h.metadata.size <= bytes.size(), "the metadata is larger than the file");
  uint64_t end = sizeof h;
  for (const auto* part : {&h.metadata, &h.tokens, &h.borders, &h.loss_mask}) {
    check(part->offset == align_section(end), "a section is not where it belongs");
    if (part->offset > bytes.size() || part->size > bytes.size() - part->offset) {
      throw DataError("{}: {} bytes, but its header asks for {}: the file is cut short", where, bytes.size(), part->offset + part->size);
    }
    check(is_zero(bytes.subspan(end, part->offset - end)), "bytes between sections are not zero");
    end = part->offset + part->size;
  }
  if (end != bytes.size()) throw DataError("{}: {} bytes, but its header asks for {}", where, bytes.size(), end);
}

// What is small enough to look at whenever a shard is opened: metadata, borders, mask.
void TokenShard::check_content() const {
  const std::string where = path().string();
  const std::pair<const ShardHeader::Section*, std::string_view> parts[] = {
      {&header_.metadata, "metadata"}, {&header_.borders, "document borders"}, {&header_.loss_mask, "loss mask"}};
  for (const auto& [part, name] : parts) {
    if (xxh3_64(section(*part)) != part->checksum) {
      throw DataError("{}: the checksum of its {} is wrong: the file is damaged, prepare the text again", where, name);
    }
  }
  const bool increasing = std::adjacent_find(borders_.begin(), borders_.end(), std::greater_equal<>()) == borders_.end();
  if (!increasing || (!borders_.empty() && borders_.back() >= header_.num_tokens)) {
    throw DataError("{}: its document borders are not increasing positions below {}", where, header_.num_tokens);
  }
  if (!continues() && (borders_.empty() || borders_.front() != 0)) throw DataError("{}: no document begins at its first token", where);
  for (uint64_t i = header_.num_tokens; has_loss_mask() && i < header_.loss_mask.size * 8; ++i) {
    if (counts(i)) throw DataError("{}: its loss mask counts padding", where);
  }
}

std::span<const std::byte> TokenShard::section(const ShardHeader::Section& part) const {
  return file_.bytes().subspan(part.offset, part.size);
}

int64_t TokenShard::greatest_id() const {
  const auto tokens = section(header_.tokens);
  return header_.id_size == 2 ? max_id<uint16_t>(tokens) : max_id<uint32_t>(tokens);
}

std::string TokenShard::fingerprint() const {
  return {header_.fingerprint.data(), strnlen(header_.fingerprint.data(), header_.fingerprint.size())};
}

void TokenShard::copy_tokens(uint64_t first, std::span<int32_t> out) const {
  const std::byte* ids = section(header_.tokens).data() + first * header_.id_size;
  if (header_.id_size == 4) {
    if (!out.empty()) std::memcpy(out.data(), ids, out.size_bytes());
    return;
  }
  const auto* narrow = reinterpret_cast<const uint16_t*>(ids);
  for (size_t i = 0; i < out.size(); ++i) out[i] = narrow[i];
}

bool TokenShard::counts(uint64_t position) const {
  if (!has_loss_mask()) return position < header_.num_tokens;
  const auto bits = static_cast<uint8_t>(section(header_.loss_mask)[position / 8]);
  return ((bits >> (position % 8)) & 1) != 0;
}

int64_t TokenShard::read_row(int64_t row, DocumentIsolation isolation, std::span<int32_t> tokens, std::span<int32_t> targets,
                             std::span<uint8_t> mask, std::span<uint8_t> is_start) const {
  const size_t length = header_.context_length;
  const uint64_t begin = static_cast<uint64_t>(row) * length;
  copy_tokens(begin, tokens);
  copy_tokens(begin + 1, targets);
  std::fill(is_start.begin(), is_start.end(), uint8_t{0});
  is_start[0] = 1;
  if (has_loss_mask()) {
    for (size_t i = 0; i < length; ++i) mask[i] = counts(begin + 1 + i) ? 1 : 0;
  } else {
    const size_t real = std::min<uint64_t>(length, header_.num_tokens - 1 - std::min(begin, header_.num_tokens - 1));
    std::fill_n(mask.begin(), real, uint8_t{1});
    std::fill(mask.begin() + static_cast<ptrdiff_t>(real), mask.end(), uint8_t{0});
  }
  if (isolation != DocumentIsolation::none) {
    for (auto it = std::lower_bound(borders_.begin(), borders_.end(), begin + 1); it != borders_.end() && *it <= begin + length; ++it) {
      const size_t place = *it - begin;  // of the first token of a document, 1 .. length
      mask[place - 1] = 0;
      if (isolation == DocumentIsolation::full && place < length) is_start[place] = 1;
    }
  }
  int64_t num_targets = 0;
  for (size_t i = 0; i < length; ++i) {
    num_targets += mask[i];
    if (mask[i] == 0) targets[i] = 0;
  }
  return num_targets;
}

int64_t TokenShard::count_targets(int64_t row, DocumentIsolation isolation) const {
  const uint64_t begin = static_cast<uint64_t>(row) * header_.context_length + 1;
  const uint64_t end = std::min(begin + header_.context_length, header_.num_tokens);
  int64_t total = 0;
  if (has_loss_mask()) {
    for (uint64_t i = begin; i < end; ++i) total += counts(i) ? 1 : 0;
  } else {
    total = static_cast<int64_t>(end - std::min(begin, end));
  }
  if (isolation == DocumentIsolation::none) return total;
  for (auto it = std::lower_bound(borders_.begin(), borders_.end(), begin); it != borders_.end() && *it < end; ++it) {
    total -= counts(*it) ? 1 : 0;
  }
  return total;
}

namespace {

// Whether the state that `synthesize` keeps says so. Its shards have checksums of their own: a damaged state is none of the reader's cares.
bool is_unfinished(const fs::path& state) {
  try {
    const auto content = read_state(state);
    return content && content->contains("is_complete") && (*content)["is_complete"] == false;
  } catch (const DataError&) {
    return false;
  }
}

}  // namespace

std::vector<fs::path> find_shards(const std::string& path) {
  std::vector<fs::path> shards;
  for (const auto& file : expand_paths({path})) {
    if (file.filename() == "prepare.journal") {
      throw DataError("{}: an interrupted `prepare` left this directory unfinished: run the same command again to complete it",
                      file.parent_path().string());
    }
    if (file.filename() == "synthesize.cbor" && is_unfinished(file)) {
      throw DataError("{}: an interrupted `synthesize` left this directory unfinished: run the same command again to complete it",
                      file.parent_path().string());
    }
    if (file.extension() == kShardExtension) shards.push_back(file);
  }
  if (shards.empty()) {
    throw IoError("{}: no token shards (*{}) here: make them with `distil-xlstm prepare`", path, kShardExtension);
  }
  return shards;
}

}  // namespace distil_xlstm::data
