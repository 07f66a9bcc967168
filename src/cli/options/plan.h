// What `distil-xlstm plan` takes.
#pragma once

#include <string>

#include "cli/run_options.h"

namespace distil_xlstm::cli {

struct PlanOptions {
  RunOptions run;
  std::string tokens, memory;
  double tflops = 0.0;
};

}  // namespace distil_xlstm::cli
