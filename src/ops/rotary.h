// Rotary positions of query and key heads in the half-split form: channel i turns with channel i + K / 2.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// Turns every head of x_BSHK in place by the angles of its position: row s stands at first_position + s.
//   x_BSHK          any strides between heads, rows and sequences: the first heads of a joint q, k, v product may be given
//   cos_TI, sin_TI  float32, contiguous, by position and channel, I = K / 2
// Arithmetic in float32 (float64 for float64). No gradient is made. Throws ShapeError where sizes do not fit.
void rotate_(const Tensor& x_BSHK, const Tensor& cos_TI, const Tensor& sin_TI, int64_t first_position);

// The same in a new tensor, differentiable in x.
Tensor rotate(const Tensor& x_BSHK, const Tensor& cos_TI, const Tensor& sin_TI, int64_t first_position);

}  // namespace distil_xlstm::ops
