// The rows of a head that the losses run over.
#pragma once

#include <span>

#include "ops/tensor.h"

namespace distil_xlstm::ops {

class HeadRows {
 public:
  HeadRows() = default;  // all
  // All of a head's `num_rows` but these, which ascend; at least one must be left. `device`: the heads' and the targets'.
  HeadRows(std::span<const int32_t> left_out, int64_t num_rows, at::Device device);

  // A view where the rows left out are the last ones, a copy otherwise; the head itself where none is.
  [[nodiscard]] Tensor of_head(const Tensor& head_VD) const;
  // Ids [...] as places among the rows that are left.
  [[nodiscard]] Tensor of_ids(const Tensor& ids) const;

 private:
  int64_t num_rows_ = 0;      // that are left; 0: all
  Tensor kept_, place_of_V_;  // int64; undefined unless there are holes
};

}  // namespace distil_xlstm::ops
