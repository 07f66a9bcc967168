// What `distil-xlstm eval` takes.
#pragma once

#include <string>
#include <vector>

#include "eval/perplexity_options.h"

namespace distil_xlstm::cli {

struct EvalOptions {
  std::string model, teacher, json_path, text_key = "text", format = "auto", bad_rows = "fail", document_end = "none", device = "auto",
                                         precision = "auto", max_tokens = "0", max_document_size = "16M", vocabulary = "model";
  std::vector<std::string> texts, unigram_from, tasks;
  std::vector<std::string> passkey;  // lengths in tokens
  std::string passkey_filler;        // "": the program's sentences
  int64_t passkey_prompts = 200;
  uint64_t seed = 0;
  int64_t repetition = 0, prompt_tokens = 64, new_tokens = 200;          // prompts; tokens of each, and written after it
  std::vector<std::string> positions = {"512", "1024", "2048", "4096"};  // of --by-position: ends of ranges
  std::string tasks_data;                                                // "": beside a task file, else the current directory
  eval::PerplexityOptions perplexity;
  int64_t limit = 0;  // items of a task, 0: all
  bool stream = false, normalize_newlines = false, strip = false, log_samples = false, by_position = false, permute_options = false;
  bool has_context_length = false;  // was given
};

}  // namespace distil_xlstm::cli
