// main() of the test programs that use LibTorch: CUDA must be opened before the first tensor.
#include <gtest/gtest.h>

#include <cstdio>

#include "ops/device.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const auto& cuda = distil_xlstm::ops::load_cuda();
  std::printf("CUDA: %s\n", cuda.detail.c_str());
  return RUN_ALL_TESTS();
}
