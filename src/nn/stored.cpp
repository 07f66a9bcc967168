#include "nn/stored.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
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

namespace {

// The first names, and how many more there are.
std::string listed(const std::vector<std::string>& names) {
  constexpr size_t kShown = 8;
  const std::vector<std::string> shown(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(std::min(kShown, names.size())));
  return join(shown, ", ") + (names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "");
}

}  // namespace

Tensor read_stored(const std::shared_ptr<io::WeightSource>& source, const std::string& name) {
  const io::TensorView view = source->view(name);
  const std::optional<at::ScalarType> type = stored_type(view.dtype);
  if (type && source->is_plain(name)) {
    auto* data = const_cast<std::byte*>(view.bytes.data());
    if (reinterpret_cast<uintptr_t>(data) % c10::elementSize(*type) == 0)
      return at::from_blob(data, view.shape, [source](void*) {}, at::TensorOptions().dtype(type));
    const Tensor copy = at::empty(view.shape, *type);
    std::memcpy(copy.mutable_data_ptr(), data, view.bytes.size());
    return copy;
  }
  Tensor values = at::empty(view.shape, at::kFloat);
  source->read_float(name, 0, view.num_elements(), values.data_ptr<float>());
  return values;
}

void check_names(const std::string& origin, const std::vector<std::string>& missing, const std::vector<std::string>& unexpected,
                 const std::string& hint) {
  if (missing.empty() && unexpected.empty()) return;
  std::vector<std::string> parts;
  if (!missing.empty()) parts.push_back(fmt::format("{} missing tensors ({})", missing.size(), listed(missing)));
  if (!unexpected.empty()) parts.push_back(fmt::format("{} unexpected tensors ({})", unexpected.size(), listed(unexpected)));
  throw DataError("{}: {}: weights and config.json do not belong together{}", origin, join(parts, ", "), hint);
}

}  // namespace distil_xlstm::nn
