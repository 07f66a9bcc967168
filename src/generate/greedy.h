// Greedy continuations of many prompts at once, and how long they took.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nn/language_model.h"

namespace distil_xlstm::generate {

struct GreedyOptions {
  int64_t max_new_tokens = 256;
  int64_t batch_tokens = 4096;         // tokens at a time, one prompt at least
  std::vector<int32_t> stop_ids;       // a continuation ends before one of these
  std::vector<int32_t> left_out_rows;  // of the head, ascending: never chosen
  std::string model_name = "the model";
};

// Of prompts that were continued together. What of them is as long as the shortest is read at once (prefill); the rest of the longer ones
// is read token by token beside what the others write, which counts as decoding.
struct GreedyBatch {
  int64_t num_rows = 0;
  int64_t prefill_tokens = 0, decode_tokens = 0;  // of all rows; those of rows that have ended are computed too
  double prefill_seconds = 0.0, decode_seconds = 0.0;
  int64_t state_bytes = 0;  // of the model's state or KV cache, all rows
};

struct GreedyResult {
  std::vector<std::vector<int32_t>> continuations;  // in the order of the prompts
  std::vector<GreedyBatch> batches;
};

// A prompt's continuation does not depend on those beside it, up to rounding. `progress` gets the number of prompts done. Throws ValueError
// for an empty prompt, Error that names model, precision and layer where a figure is not finite, Interrupted between two tokens after a
// signal that a SignalGuard caught.
GreedyResult greedy_continuations(nn::LanguageModel& model, std::span<const std::vector<int32_t>> prompts, const GreedyOptions& options,
                                  const std::function<void(size_t)>& progress = {});

}  // namespace distil_xlstm::generate
