#include "ops/cuda_targets.h"

#include <fmt/format.h>

#include <charconv>

namespace distil_xlstm::ops {
namespace {

bool target_covers(std::string_view target, int capability) {
  int number = 0;
  const auto [rest, error] = std::from_chars(target.data(), target.data() + target.size(), number);
  if (error != std::errc()) return true;
  target.remove_prefix(static_cast<size_t>(rest - target.data()));
  const bool is_same_major = capability / 10 == number / 10, is_newer = capability >= number;
  if (target.starts_with('a')) return capability == number;
  if (target.starts_with('f') || target == "-real") return is_same_major && is_newer;
  return is_newer;
}

}  // namespace

bool cuda_targets_cover(std::string_view targets, int capability) {
  while (!targets.empty()) {
    const size_t end = targets.find(',');
    const std::string_view target = targets.substr(0, end);
    if (!target.empty() && target_covers(target, capability)) return true;
    targets = end == std::string_view::npos ? std::string_view() : targets.substr(end + 1);
  }
  return false;
}

std::string no_code_message(std::string_view targets, int capability) {
  constexpr int kFirstCapability = 80;
  const std::string device = fmt::format("a GPU of compute capability {}.{}", capability / 10, capability % 10);
  if (capability < kFirstCapability) return fmt::format("{}: our kernels need 8.0", device);
  return fmt::format("{}, libdistil_xlstm_cuda.so is compiled for {}: build it on this machine, or with CUDA_ARCHITECTURES={}", device,
                     targets, capability == 90 ? "90a" : std::to_string(capability));
}

}  // namespace distil_xlstm::ops
