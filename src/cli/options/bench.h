// What `distil-xlstm bench` takes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/run_options.h"

namespace distil_xlstm::cli {

struct BenchOptions {
  RunOptions run;
  std::vector<std::string> parts;
  std::vector<int64_t> step_rows;
  std::string stage, json_path, trace_path;
};

// The parts that it measures, in the order of the step.
const std::vector<std::string>& bench_part_names();

}  // namespace distil_xlstm::cli
