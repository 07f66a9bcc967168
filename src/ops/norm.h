// Layer norms of xLSTM v1 (residual weight) and RMSNorm of the transformers, as fused differentiable operations.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// LayerNorm without bias whose factor is (1 + weight) (docs/mathematics.md 1), over num_groups contiguous groups of the last dimension
// (1: plain; NH: the multi-head norm). Statistics in float32 (float64 for float64). Differentiable in x and weight. The result has x's
// type, or `dtype`: a matrix product that follows then needs no conversion of its own.
Tensor residual_layer_norm(const Tensor& x, const Tensor& weight, int64_t num_groups = 1, std::optional<at::ScalarType> dtype = {});

// x * rsqrt(mean(x^2) + eps) * weight, reduction in float32. No gradient is needed (teachers).
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);

}  // namespace distil_xlstm::ops
