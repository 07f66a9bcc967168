// What `distil-xlstm synthesize` takes.
#pragma once

#include <cstdint>
#include <string>

#include "generate/synthesize_options.h"

namespace distil_xlstm::cli {

struct SynthesizeOptions {
  std::string model, output, prompt, max_tokens = "1M", document_end = "none", device = "auto", precision = "auto";
  int64_t context_length = 512;
  bool is_validation = false, overwrite = false;
  generate::SynthesizeOptions synthesize;
};

}  // namespace distil_xlstm::cli
