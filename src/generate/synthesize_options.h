// How a model writes training text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "generate/sampler.h"

namespace distil_xlstm::generate {

struct SynthesizeOptions {
  SamplingOptions sampling{.temperature = 1.0};
  std::vector<int32_t> prompt;           // what every document begins with; at least one token
  std::vector<int32_t> stop_ids;         // end a document; not part of it
  std::vector<int32_t> left_out;         // never written, ascending (rows_without_token)
  std::string model_name = "the model";  // for messages
  int64_t max_document_tokens = 512;     // prompt included
  int64_t batch_size = 64;
};

}  // namespace distil_xlstm::generate
