// Text -> token shards: reads, encodes on all cores, packs and writes at the same time; stops and goes on with the same bytes.
// Beside the shards lie prepare.json (settings and counts, written last) or, while unfinished, prepare.journal.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file.h"
#include "data/packer.h"
#include "data/prepare_journal.h"
#include "data/shard_writer.h"
#include "data/text_reader.h"

namespace distil_xlstm::data {

struct PrepareOptions {
  ReaderOptions reader;
  fs::path output;    // a directory
  std::string model;  // whose tokenizer: what --model takes, or a tokenizer.json, or a directory with one
  int64_t context_length = 512;
  std::string document_end = "none";  // "none" | "eos" | TOKEN
  double validation_fraction = 0.01;  // of documents, chosen by a hash of their text: the same text is always on the same side
  int64_t max_tokens = 0;             // both splits together; the document that reaches it is cut there; 0: all text
  uint64_t shard_bytes = 512ULL << 20;
  int num_threads = 0;  // for encoding; 0: all cores. The result does not depend on it
  // What to do with what another `prepare` left in the output. By default an unfinished run of the same settings goes on, a finished
  // one is taken as it is, and anything else is refused.
  bool overwrite = false;  // replace it, finished or not; but an unfinished run of the same settings still goes on
  bool reuse = false;      // as by default where the settings are the same, else replace it: for directories of a caller's own
  bool show_progress = true;

  uint64_t batch_bytes = 4ULL << 20;  // text encoded at once
  double journal_seconds = 30.0;      // how much work a kill may lose
};

struct PrepareReport {
  ReaderCounts counts;
  uint64_t refused_conversations = 0;  // the chat template would not render them
  TargetCounts targets;                // nothing in an output of a version that did not count them
  int64_t train_tokens = 0;
  int64_t validation_tokens = 0;
  std::vector<ShardSummary> shards;  // of both splits
  bool reached_max_tokens = false;
  bool was_complete = false;  // the output already held this very result
  bool was_resumed = false;
  double seconds = 0.0;        // of this call
  uint64_t session_bytes = 0;  // text encoded by this call
  int64_t session_tokens = 0;
};

// Throws ConfigError (settings; an output that holds something else, or that another process is writing), DataError, IoError; Interrupted
// after a signal that a SignalGuard caught, with everything saved for the next call.
PrepareReport prepare(const PrepareOptions& options);
PrepareReport prepare(const PrepareOptions& options, const TextEncoder& encoder);  // options.model is only written down

}  // namespace distil_xlstm::data
