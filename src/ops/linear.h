// Linear maps: with gradients, and without, as models apply them to the tokens that they decode.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// A weight, and the same in the products' type where the caller keeps that from step to step (undefined: converted at each call).
// Gradients go to the weight.
struct LinearWeight {
  Tensor weight, converted;
  LinearWeight(Tensor weight, Tensor converted = {})  // NOLINT(google-explicit-constructor): most callers have a weight alone
      : weight(std::move(weight)), converted(std::move(converted)) {}
};

// x W^T + b in x's type, for x [..., K], W [E, K]; bias_E may be undefined. Differentiable in x, weight and bias, whose gradients have
// their types. Neither a product nor memory goes into the gradient of what needs none: a frozen matrix keeps no x. Throws ShapeError.
Tensor linear_with_grad(const Tensor& x, const LinearWeight& weight_EK, const Tensor& bias_E = {});

// x W^T + b in the weight's type, float32 or float64, for x [..., K] of any: what goes into exponentials (docs/mathematics.md 9). Half
// precision x on CUDA is multiplied by the weight rounded to its type, with sums in float32. Differentiable in all. Throws ShapeError.
Tensor wide_linear(const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E);

// x W^T + b for x [..., K], W [E, K]; bias_E may be undefined; nothing is recorded for a gradient. One row in float32 or float64 on a CPU
// (a token that is decoded) goes through a kernel whose bits do not depend on the number of threads; all else through LibTorch. Throws
// ShapeError.
Tensor linear_without_grad(const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E = {});

// sum += x W^T + b, in place; sum [..., E] is contiguous. Throws ShapeError.
void add_linear_(const Tensor& sum, const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E = {});

// Whether the kernel takes these, so that a caller which records gradients may ask.
bool has_matvec(const Tensor& x, const Tensor& weight_EK);

}  // namespace distil_xlstm::ops
