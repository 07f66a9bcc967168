// What `distil-xlstm eval` takes.
#pragma once

#include <string>
#include <vector>

#include "eval/perplexity_options.h"

namespace distil_xlstm::cli {

struct EvalOptions {
  std::string model, teacher, json_path, text_key = "text", format = "auto", bad_rows = "fail", document_end = "none", device = "auto",
                                         precision = "auto", max_tokens = "0", max_document_size = "16M", vocabulary = "model";
  std::vector<std::string> texts, unigram_from;
  eval::PerplexityOptions perplexity;
  bool stream = false, normalize_newlines = false, strip = false;
};

}  // namespace distil_xlstm::cli
