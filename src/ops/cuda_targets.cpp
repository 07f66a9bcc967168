#include "ops/cuda_targets.h"

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
    if (target_covers(targets.substr(0, end), capability)) return true;
    targets = end == std::string_view::npos ? std::string_view() : targets.substr(end + 1);
  }
  return false;
}

}  // namespace distil_xlstm::ops
