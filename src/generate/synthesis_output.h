// The directory that `synthesize` writes: shards of one split, and synthesize.cbor, which says of what settings they are and where an
// interrupted call goes on. It is written before the first shard, so that a killed call always leaves a directory to go on with.
#pragma once

#include <memory>

#include "base/json.h"
#include "base/output_lock.h"
#include "data/shard_writer.h"

namespace distil_xlstm::generate {

struct SynthesisRequest {
  fs::path directory;
  std::vector<fs::path> models;  // what is read: the output is neither of them nor around one
  json settings;                 // must be equal for an interrupted call to go on
  data::ShardSettings shard;
  int64_t max_tokens = 0;
  bool overwrite = false;  // replace text of other settings, and finished text
};

// Throws ConfigError where `synthesize` may not write; for before a model is loaded.
void check_synthesis_output(const fs::path& directory, const std::vector<fs::path>& models);

// Takes up what an earlier call left, and holds the directory's lock.
class SynthesisOutput {
 public:
  // Throws ConfigError where the directory holds something else, DataError where what it holds is damaged.
  explicit SynthesisOutput(const SynthesisRequest& request);

  [[nodiscard]] bool is_complete() const { return is_complete_; }  // all is there already
  [[nodiscard]] data::ShardWriter& writer() { return *writer_; }
  [[nodiscard]] uint64_t next_document() const { return next_document_; }

  void add(std::span<const int32_t> document);  // the next one
  void save();                                  // a call that is stopped after this goes on here
  void finish();

 private:
  bool take_up(const json& state);
  void write(bool is_complete, const json& place);

  SynthesisRequest request_;
  std::unique_ptr<OutputLock> lock_;
  std::unique_ptr<data::ShardWriter> writer_;
  uint64_t next_document_ = 0;
  bool is_complete_ = false;
};

}  // namespace distil_xlstm::generate
