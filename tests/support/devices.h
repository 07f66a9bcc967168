// The devices that a test runs on.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "ops/device.h"
#include "ops/tensor.h"

namespace distil_xlstm::testing {

// The CPU and, where there is one, the first GPU. Without one the test is marked: tools/run_tests counts what did not run there, and why.
inline std::vector<at::Device> devices() {
  std::vector<at::Device> list{at::kCPU};
  if (at::hasCUDA()) {
    list.emplace_back(at::kCUDA, 0);
  } else {
    ::testing::Test::RecordProperty("not_run_on_cuda", ops::load_cuda().detail);
  }
  return list;
}

}  // namespace distil_xlstm::testing
