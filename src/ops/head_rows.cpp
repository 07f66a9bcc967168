#include "ops/head_rows.h"

#include <vector>

#include "ops/internal.h"

namespace distil_xlstm::ops {

HeadRows::HeadRows(std::span<const int32_t> left_out, int64_t num_rows, at::Device device) {
  if (left_out.empty()) return;
  num_rows_ = num_rows - static_cast<int64_t>(left_out.size());
  if (num_rows_ < 1) throw ShapeError("head: no row of {} is left", num_rows);
  if (left_out.front() == num_rows_) return;  // the last ones, and no other
  std::vector<int64_t> kept, place_of(static_cast<size_t>(num_rows), 0);
  size_t next = 0;
  for (int64_t row = 0; row < num_rows; ++row) {
    if (next < left_out.size() && left_out[next] == row) {
      ++next;
      continue;
    }
    place_of[static_cast<size_t>(row)] = static_cast<int64_t>(kept.size());
    kept.push_back(row);
  }
  kept_ = at::tensor(kept, at::kLong).to(device);
  place_of_V_ = at::tensor(place_of, at::kLong).to(device);
}

Tensor HeadRows::of_head(const Tensor& head_VD) const {
  if (num_rows_ == 0) return head_VD;
  return kept_.defined() ? head_VD.index_select(0, kept_) : head_VD.narrow(0, 0, num_rows_);
}

Tensor HeadRows::of_ids(const Tensor& ids) const {
  return kept_.defined() ? place_of_V_.index_select(0, ids.reshape({-1})).view(ids.sizes()) : ids;
}

}  // namespace distil_xlstm::ops
