#include "ops/device.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <string>

#include "base/error.h"
#include "ops/cuda_backend.h"
#include "unit/ops/op_testing.h"

namespace distil_xlstm::ops {
namespace {

// DISTIL_XLSTM_KERNELS set to `value` until the end of the scope.
class KernelsVariable {
 public:
  explicit KernelsVariable(const char* value) {
    if (const char* before = std::getenv("DISTIL_XLSTM_KERNELS")) before_ = before;
    ::setenv("DISTIL_XLSTM_KERNELS", value, 1);
  }
  ~KernelsVariable() {
    if (before_) {
      ::setenv("DISTIL_XLSTM_KERNELS", before_->c_str(), 1);
    } else {
      ::unsetenv("DISTIL_XLSTM_KERNELS");
    }
  }
  KernelsVariable(const KernelsVariable&) = delete;
  KernelsVariable& operator=(const KernelsVariable&) = delete;

 private:
  std::optional<std::string> before_;
};

TEST(Device, NamesAWrongChoiceOfKernels) {
  for (const char* allowed : {"fast", "plain", ""}) {
    const KernelsVariable variable(allowed);
    EXPECT_EQ(parse_device("cpu"), at::Device(at::kCPU));
  }
  const KernelsVariable variable("slow");
  try {
    parse_device("cpu");
    ADD_FAILURE() << "no error";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "DISTIL_XLSTM_KERNELS = slow: must be 'fast' or 'plain'");
  }
}

// Whether /proc/cpuinfo names one of these instruction sets.
bool has_cpu_flag(std::initializer_list<std::string> names) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string word; file >> word;) {
    if (std::find(names.begin(), names.end(), word) != names.end()) return true;
  }
  return false;
}

TEST(Device, KnowsWhichTypesTheCpuMultiplies) {
  const at::Device cpu(at::kCPU);
  EXPECT_TRUE(has_products(at::kFloat, cpu));
  EXPECT_TRUE(has_products(at::kDouble, cpu));
  EXPECT_TRUE(has_products(at::kHalf, at::Device(at::kCUDA, 0)));
#if defined(__x86_64__)
  EXPECT_EQ(has_products(at::kBFloat16, cpu), has_cpu_flag({"avx512_bf16", "amx_bf16"}));
  EXPECT_EQ(has_products(at::kHalf, cpu), has_cpu_flag({"avx512_fp16", "amx_fp16"}));
#endif
}

TEST(Device, KernelsServeCudaTensorsUnlessPlainOnesAreAskedFor) {
  const char* kernels = std::getenv("DISTIL_XLSTM_KERNELS");
  const bool is_plain = kernels != nullptr && std::string(kernels) == "plain";
  for (const at::Device device : testing::devices()) {
    // Without the second part all other tests would pass on plain operations where the library is missing.
    EXPECT_EQ(has_cuda_kernels(at::zeros({1}, device)), device.is_cuda() && !is_plain) << device << ": " << load_cuda().detail;
    if (device.is_cuda() && is_plain) {
      EXPECT_NE(load_cuda().detail.find("DISTIL_XLSTM_KERNELS=plain"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::ops
