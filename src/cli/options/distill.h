// What `distil-xlstm distill` takes.
#pragma once

#include <cstdint>
#include <string>

#include "cli/run_options.h"

namespace distil_xlstm::cli {

struct DistillOptions {
  RunOptions run;
  bool resume = false, overwrite = false, print_settings = false;
  int64_t stop_after = 0;
};

}  // namespace distil_xlstm::cli
