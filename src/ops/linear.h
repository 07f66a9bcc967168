// Linear maps without a gradient, as models apply them to the tokens that they decode.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// x W^T + b for x [..., K], W [E, K]; bias_E may be undefined; nothing is recorded for a gradient. One row in float32 or float64 on a CPU
// (a token that is decoded) goes through a kernel whose bits do not depend on the number of threads; all else through LibTorch. Throws
// ShapeError.
Tensor linear_without_grad(const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E = {});

// sum += x W^T + b, in place; sum [..., E] is contiguous. Throws ShapeError.
void add_linear_(const Tensor& sum, const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E = {});

// Whether the kernel takes these, so that a caller which records gradients may ask.
bool has_matvec(const Tensor& x, const Tensor& weight_EK);

}  // namespace distil_xlstm::ops
