// What `distil-xlstm export` takes.
#pragma once

#include <string>

namespace distil_xlstm::cli {

struct ExportOptions {
  std::string model, output, layout = "cuda", dtype = "fp32";
  bool overwrite = false;
};

}  // namespace distil_xlstm::cli
