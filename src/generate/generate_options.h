// How a text is written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "generate/sampler.h"

namespace distil_xlstm::generate {

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_new_tokens = 256;
  std::vector<std::string> stop;  // the text ends before the first of these
  std::vector<int32_t> stop_ids;  // end-of-text tokens; not part of the text
  int64_t prefill_piece = 512;    // prompt tokens at a time
  bool skip_special_tokens = true;
  std::string model_name = "the model";  // for messages
  bool continues_text = true;            // false: an answer, a text of its own whose first piece is decoded as such
};

}  // namespace distil_xlstm::generate
