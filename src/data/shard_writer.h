// Documents of token ids -> rows -> token shards of one split, one after the other. Also for text that a model wrote.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "data/token_shard.h"

namespace distil_xlstm::data {

struct ShardSettings {
  Split split = Split::train;
  int64_t context_length = 0;
  int64_t vocab_size = 0;                  // Tokenizer::vocab_size()
  int64_t num_rows = 0;                    // of the model that the shards are for, which may be fewer; 0: not known
  std::string tokenizer_fingerprint;       // at most 63 ASCII characters
  std::optional<int32_t> bos_id;           // what documents begin with, for the header; the writer adds nothing
  std::optional<int32_t> document_end_id;  // what they end with, likewise
  bool synthetic = false;                  // written by a model, not found in the world
  json source = json::object();            // where the text came from
  uint64_t shard_bytes = 512ULL << 20;     // a shard closes before its ids outgrow this (but holds a row at least)
};

// ShardWriter::add was given a token that the model has no row for. Who knows the tokenizer says which (no_row_message).
class NoRow : public Error {
 public:
  explicit NoRow(int32_t id) : Error(fmt::format("id {} has no row in the model", id)), id_(id) {}
  [[nodiscard]] int32_t id() const { return id_; }

 private:
  int32_t id_;
};

struct ShardSummary {
  std::string file;  // name in its directory
  int64_t num_rows = 0;
  int64_t num_tokens = 0;  // the id shared with the shard before not counted
  int64_t num_documents = 0;
  std::string checksum;  // XXH3-64 of the header, hexadecimal: it covers the checksums of all sections
};

// Writes `<directory>/<split>-00000.dxts` and so on. Each shard appears under its name only when it is whole and synced.
// Every id goes into exactly one place of the stream; only the last row of the last shard is padded.
class ShardWriter {
 public:
  // Makes the directory. Throws ConfigError for settings that no shard can hold.
  ShardWriter(fs::path directory, ShardSettings settings);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  // A document (or, with begins_document = false, more of the last one). Ids as they shall stand, BOS and end included.
  // `counts`: empty when every id counts as a target, else 1 or 0 for each. Throws ValueError for an id outside the vocabulary.
  void add(std::span<const int32_t> ids, std::span<const uint8_t> counts = {}, bool begins_document = true);
  // Pads the last row, closes the last shard. Nothing may follow.
  void finish();

  [[nodiscard]] int64_t num_tokens() const;  // added so far
  [[nodiscard]] int64_t num_documents() const;
  [[nodiscard]] const std::vector<ShardSummary>& shards() const;  // closed so far

  // For interrupted runs: save() syncs what is written and describes it (binary JSON, to_cbor keeps it small); a new writer of
  // the same settings and directory takes it with restore() and goes on there, whatever was written after save().
  [[nodiscard]] json save();
  void restore(const json& state);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace distil_xlstm::data
