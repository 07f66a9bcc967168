// For the CPU kernels that LibTorch does not know: its profiler (bench --trace) sees its own operators only.
#pragma once

#include <ATen/record_function.h>

namespace distil_xlstm::ops {

// While it lives the profiler, where one runs, shows this name on this thread.
class Profiled {
 public:
  explicit Profiled(const char* name) : record_(at::RecordScope::FUNCTION) {
    if (record_.isActive()) record_.before(name);
  }

 private:
  at::RecordFunction record_;
};

}  // namespace distil_xlstm::ops
