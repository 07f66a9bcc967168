#include "commands/compute.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include "ops/device.h"

namespace distil_xlstm::commands {

std::string system_info() {
  const auto& cuda = ops::load_cuda();
  return fmt::format("distil-xlstm {}\nLibTorch {}, CPU {}, {} threads\nCUDA: {}", DISTIL_XLSTM_VERSION, TORCH_VERSION,
                     at::get_cpu_capability(), at::get_num_threads(), cuda.detail);
}

}  // namespace distil_xlstm::commands
