#include "ops/cuda_targets.h"

#include <gtest/gtest.h>

namespace distil_xlstm::ops {
namespace {

TEST(CudaTargets, MachineCodeServesItsMajorVersionFromItsMinorOneOn) {
  EXPECT_TRUE(cuda_targets_cover("80-real", 80));
  EXPECT_TRUE(cuda_targets_cover("80-real", 86));
  EXPECT_FALSE(cuda_targets_cover("86-real", 80));
  EXPECT_FALSE(cuda_targets_cover("80-real", 90));
  EXPECT_FALSE(cuda_targets_cover("80-real", 75));
  EXPECT_FALSE(cuda_targets_cover("100-real", 120));
}

TEST(CudaTargets, PtxServesWhatIsNotOlder) {
  for (const char* target : {"80-virtual", "80"}) {
    EXPECT_TRUE(cuda_targets_cover(target, 80)) << target;
    EXPECT_TRUE(cuda_targets_cover(target, 120)) << target;
    EXPECT_FALSE(cuda_targets_cover(target, 75)) << target;
  }
}

TEST(CudaTargets, CodeOfOneVersionServesItAlone) {
  for (const char* target : {"90a", "90a-real", "90a-virtual"}) {
    EXPECT_TRUE(cuda_targets_cover(target, 90)) << target;
    EXPECT_FALSE(cuda_targets_cover(target, 80)) << target;
    EXPECT_FALSE(cuda_targets_cover(target, 100)) << target;
  }
  EXPECT_FALSE(cuda_targets_cover("100a-real", 103));
  EXPECT_TRUE(cuda_targets_cover("100f-real", 103));
  EXPECT_FALSE(cuda_targets_cover("100f-real", 110));
}

TEST(CudaTargets, OneOfTheListIsEnough) {
  const char* released = "80-real,89-real,90a-real,100a-real,120-real,80-virtual";
  for (const int capability : {80, 86, 87, 89, 90, 100, 103, 110, 120, 121})
    EXPECT_TRUE(cuda_targets_cover(released, capability)) << capability;
  EXPECT_FALSE(cuda_targets_cover(released, 75));
  EXPECT_FALSE(cuda_targets_cover("80-real,90a-real", 100));
  EXPECT_FALSE(cuda_targets_cover("", 90));
  EXPECT_FALSE(cuda_targets_cover("80-real,,", 90));
}

TEST(CudaTargets, NamesWithoutANumberCountAsEveryGpu) {
  EXPECT_TRUE(cuda_targets_cover("native", 80));
  EXPECT_TRUE(cuda_targets_cover("all-major", 120));
}

TEST(CudaTargets, TellsHowToGetCodeForAGpu) {
  EXPECT_EQ(no_code_message("80-real,86-real", 90),
            "a GPU of compute capability 9.0, libdistil_xlstm_cuda.so is compiled for 80-real,86-real: build it on this machine, or with "
            "CUDA_ARCHITECTURES=90a");
  EXPECT_EQ(no_code_message("90a", 120),
            "a GPU of compute capability 12.0, libdistil_xlstm_cuda.so is compiled for 90a: build it on this machine, or with "
            "CUDA_ARCHITECTURES=120");
  EXPECT_EQ(no_code_message("90a", 75), "a GPU of compute capability 7.5: our kernels need 8.0");
}

}  // namespace
}  // namespace distil_xlstm::ops
