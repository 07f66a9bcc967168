// One token shard on disk: the ids of consecutive rows, where documents begin, and which targets count.
//
// Little endian; the same table with the meaning of every field is docs/formats/token-shard.md.
//   offset size
//        0    8  magic "DXTOKENS"
//        8    4  version = 1
//       12    4  header size = 256
//       16    4  id size: 2 when vocab_size <= 65536, else 4
//       20    4  flags: 1 synthetic, 2 has a loss mask, 4 the first token repeats the last one of the shard before
//       24    8  context_length C
//       32    8  vocab_size: every id is below it
//       40    8  num_rows R
//       48    8  num_tokens T: ids that are no padding
//       56    8  num_borders D: documents that begin in this shard
//       64    4  first id that the tokenizer puts before a text, -1 = none
//       68    4  id that ends each document, -1 = none
//       72    4  number of this shard in its split, from 0
//       76    4  split: 0 train, 1 validation
//       80   64  tokenizer fingerprint, ASCII, filled up with zero bytes
//      144   96  four sections {offset, size in bytes, XXH3-64}: metadata, tokens, borders, loss mask
//      240    8  zero
//      248    8  XXH3-64 of bytes 0..247
// Each section begins at the next multiple of 64 after the one before (zero bytes between); the file ends with the last one.
//   metadata   JSON object in UTF-8: where the text came from
//   tokens     R * C + 1 ids; row r is ids r*C .. r*C + C, so neighbours share one; padding after T is zero
//   borders    D positions (uint64) below T, increasing: the id there is the first of a document
//   loss mask  empty, or R * C + 1 bits, lowest first: 1 = this id counts as a target; zero from T on
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/file.h"
#include "base/json.h"
#include "config/choices.h"

namespace distil_xlstm::data {

inline constexpr std::string_view kShardExtension = ".dxts";

enum class Split : uint32_t { train = 0, validation = 1 };
std::string_view split_name(Split split);

using config::DocumentIsolation;

// The header as it lies in the file.
struct ShardHeader {
  struct Section {
    uint64_t offset = 0;
    uint64_t size = 0;
    uint64_t checksum = 0;
  };
  std::array<char, 8> magic{'D', 'X', 'T', 'O', 'K', 'E', 'N', 'S'};
  uint32_t version = 1;
  uint32_t header_size = 256;
  uint32_t id_size = 2;
  uint32_t flags = 0;
  uint64_t context_length = 0;
  uint64_t vocab_size = 0;
  uint64_t num_rows = 0;
  uint64_t num_tokens = 0;
  uint64_t num_borders = 0;
  int32_t bos_id = -1;
  int32_t document_end_id = -1;
  uint32_t index = 0;
  uint32_t split = 0;
  std::array<char, 64> fingerprint{};
  Section metadata, tokens, borders, loss_mask;
  uint64_t reserved = 0;
  uint64_t checksum = 0;

  static constexpr uint32_t kSynthetic = 1;
  static constexpr uint32_t kHasLossMask = 2;
  static constexpr uint32_t kContinues = 4;
};
static_assert(sizeof(ShardHeader) == 256);

// Where a section may begin after `end`.
constexpr uint64_t align_section(uint64_t end) {
  return (end + 63) / 64 * 64;
}

// A shard, mapped. Nothing in the file is believed before it is checked; const methods may run on several threads.
class TokenShard {
 public:
  // Throws IoError, or DataError that says what is wrong with the file. `verify_content` = false leaves out the pass over
  // tokens and mask (checksum, range of ids): for tools that only look at headers.
  explicit TokenShard(const fs::path& path, bool verify_content = true);

  [[nodiscard]] const fs::path& path() const { return file_.path(); }
  [[nodiscard]] const ShardHeader& header() const { return header_; }
  [[nodiscard]] int64_t context_length() const { return static_cast<int64_t>(header_.context_length); }
  [[nodiscard]] int64_t num_rows() const { return static_cast<int64_t>(header_.num_rows); }
  [[nodiscard]] Split split() const { return static_cast<Split>(header_.split); }
  [[nodiscard]] bool is_synthetic() const { return (header_.flags & ShardHeader::kSynthetic) != 0; }
  [[nodiscard]] bool has_loss_mask() const { return (header_.flags & ShardHeader::kHasLossMask) != 0; }
  [[nodiscard]] bool continues() const { return (header_.flags & ShardHeader::kContinues) != 0; }
  [[nodiscard]] std::string fingerprint() const;
  [[nodiscard]] int64_t greatest_id() const;  // of its tokens; reads them all
  [[nodiscard]] const json& metadata() const { return metadata_; }
  [[nodiscard]] std::span<const uint64_t> borders() const { return borders_; }

  // ids[first .. first + out.size()), padding included. The caller keeps the range inside num_rows * context_length + 1.
  void copy_tokens(uint64_t first, std::span<int32_t> out) const;
  // Whether the id at `position` counts as a target, borders aside.
  [[nodiscard]] bool counts(uint64_t position) const;

  // One row; each span holds context_length entries with the meaning they have in Batch (loader.h). Returns the sum of mask.
  int64_t read_row(int64_t row, DocumentIsolation isolation, std::span<int32_t> tokens, std::span<int32_t> targets, std::span<uint8_t> mask,
                   std::span<uint8_t> is_start) const;
  // The same sum without reading the ids.
  [[nodiscard]] int64_t count_targets(int64_t row, DocumentIsolation isolation) const;

 private:
  void check_layout() const;
  void check_content() const;
  [[nodiscard]] std::span<const std::byte> section(const ShardHeader::Section& section) const;

  MappedFile file_;
  ShardHeader header_;
  json metadata_;
  std::span<const uint64_t> borders_;
};

// Shards below each argument (a shard, a directory, a glob), sorted. Throws IoError when there are none, DataError when a
// directory holds an unfinished `prepare` or `synthesize`.
std::vector<fs::path> find_shards(const std::string& path);

}  // namespace distil_xlstm::data
