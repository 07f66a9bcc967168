// What `distil-xlstm generate` takes.
#pragma once

#include <string>

#include "generate/generate_options.h"

namespace distil_xlstm::cli {

struct GenerateOptions {
  std::string model, prompt, prompt_file, system, device = "auto", precision = "auto", json_path;
  bool chat = false, quiet = false, ignore_eos = false;
  generate::GenerateOptions generate;
};

}  // namespace distil_xlstm::cli
