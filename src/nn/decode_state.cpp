#include "nn/decode_state.h"

#include <fmt/ranges.h>

#include "base/error.h"

namespace distil_xlstm::nn {

Tensor checked_rows(std::string_view what, const Tensor& rows, int64_t batch, at::Device device) {
  if (!rows.defined() || rows.dim() != 1 || rows.numel() == 0 || rows.scalar_type() != at::kLong) {
    throw ShapeError(
        "{}: rows are {}: a list of at least one in int64 is needed", what,
        rows.defined() ? fmt::format("{} [{}]", at::toString(rows.scalar_type()), fmt::join(rows.sizes(), ", ")) : "not given");
  }
  const auto [lowest, highest] = at::aminmax(rows);
  if (lowest.item<int64_t>() < 0 || highest.item<int64_t>() >= batch)
    throw ValueError("{}: rows {} to {} of a batch of {}", what, lowest.item<int64_t>(), highest.item<int64_t>(), batch);
  return rows.to(device);
}

void check_same_tokens(std::string_view what, const DecodeState& state, const DecodeState& other) {
  if (state.num_tokens() != other.num_tokens())
    throw ValueError("{}: rows after {} tokens cannot join rows after {}: all rows of a state have seen as many", what, other.num_tokens(),
                     state.num_tokens());
}

}  // namespace distil_xlstm::nn
