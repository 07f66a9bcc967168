// Rows of prepared token shards as micro-batches in plain memory, shuffled by epoch; its place is part of a checkpoint.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/ranks.h"
#include "data/token_shard.h"

namespace distil_xlstm::data {

// A row of the data, whatever the order in which it comes, on whichever process, before or after a resume.
struct RowId {
  uint64_t shard = 0;  // TokenShard::header().checksum: of its content
  uint64_t row = 0;    // in the shard

  bool operator==(const RowId&) const = default;
};

// One micro-batch. All arrays are row-major [num_rows, context_length].
struct Batch {
  int64_t num_rows = 0;
  int64_t context_length = 0;
  std::vector<int32_t> tokens;    // inputs
  std::vector<int32_t> targets;   // next tokens; 0 where mask is 0
  std::vector<uint8_t> mask;      // 1: the target lies in the same document, is no padding, and counts for the loss
  std::vector<uint8_t> is_start;  // 1: a document begins at this input token (state is reset before it, attention cut);
                                  // always 1 at a row's first token; all other entries 0 unless document_isolation = "full"
  std::vector<RowId> row_ids;     // one a row; empty where rows come from no shard
  int64_t num_targets = 0;        // sum of mask
};

struct LoaderSource {
  std::string path;     // a shard, a directory of shards, or a glob
  double weight = 1.0;  // share of the rows of an epoch, relative; all 1: every row exactly once
};

struct LoaderOptions {
  std::vector<LoaderSource> sources;
  std::string split = "train";  // "train", "validation", or "any" for whatever the sources hold
  int64_t context_length = 0;   // 0: as the shards have it; otherwise must equal theirs
  int64_t micro_batch_size = 1;
  uint64_t seed = 0;
  bool shuffle = true;
  Ranks ranks;
  DocumentIsolation document_isolation = DocumentIsolation::full;
  std::string tokenizer_fingerprint;  // when not empty, must equal the shards'
  // When set, must equal that of shards that hold conversations; "" (a model without one) warns.
  std::optional<std::string> chat_template_fingerprint;
  std::optional<int32_t> begin_id;  // what the tokenizer puts before a text, -1: nothing; shards with another one get a warning
  int64_t vocab_size = 0;           // when not 0, every id must be below it
  std::function<std::string(int32_t id, const std::string& where)> no_row_message;  // of an id that is not; empty: a plain one
  bool verify_checksums = true;  // false: trust tokens on disk (only headers, borders and masks are checked)
};

// An epoch has as many rows as the sources hold. Rows without a single target (a prompt that fills a row, the lone last token)
// are left out. Row i of the shuffled order goes to rank i % world_size; where the count does not divide, the last ranks get a
// copy of a row with an empty mask, so that all ranks make the same number of micro-batches and no target is seen twice.
// One thread at a time.
class Loader {
 public:
  // Maps every shard and checks headers, checksums, fingerprints. Throws DataError, ConfigError.
  explicit Loader(const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // Next micro-batch of the current epoch; the last one of an epoch may be smaller. False at the epoch's end: call
  // begin_epoch() to go on.
  bool next(Batch& batch);
  void begin_epoch(int64_t epoch);  // resets the place, reshuffles with (seed, epoch)
  [[nodiscard]] int64_t epoch() const;
  [[nodiscard]] int64_t context_length() const;
  [[nodiscard]] int64_t rows_per_epoch() const;    // on this rank
  [[nodiscard]] int64_t tokens_per_epoch() const;  // targets that count, on this rank, in the current epoch
  [[nodiscard]] bool is_synthetic() const;         // whether any shard was written by a model
  [[nodiscard]] json state() const;                // place, seed, fingerprint of the shard list
  void restore(const json& state);                 // throws DataError when the shards are not those of the state

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace distil_xlstm::data
