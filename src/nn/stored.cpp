#include "nn/stored.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"

namespace distil_xlstm::nn {

std::optional<at::ScalarType> stored_type(io::DType dtype) {
  switch (dtype) {
    case io::DType::f64:
      return at::kDouble;
    case io::DType::f32:
      return at::kFloat;
    case io::DType::f16:
      return at::kHalf;
    case io::DType::bf16:
      return at::kBFloat16;
    default:
      return std::nullopt;
  }
}

std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kShown = 8;
  const std::vector<std::string> shown(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(std::min(kShown, names.size())));
  return join(shown, ", ") + (names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "");
}

}  // namespace distil_xlstm::nn
