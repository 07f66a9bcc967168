// Learned positive features of queries and keys, head by head (docs/convert.md). Letters: B batch, S sequence, H heads, K head width, M
// width of a map, F = 2 M features, N = B S.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// What `scale` is of a token's features in a head: the sum of each softmax, or the length of both together, the root of their squares' sum.
enum class FeatureScale : uint8_t { sums, length };

// [softmax(x A), softmax(-x A)], scaled, contiguous, in `dtype`: x_BSHK (heads may be strided), map_HKM -> [B, S, H, F]. The product runs
// in x's type, the exponentials in float32 (float64 for float64). Differentiable in x and the map, whose gradient has the map's type. Keeps
// x and the features for backward. Throws ShapeError.
Tensor feature_map(const Tensor& x_BSHK, const Tensor& map_HKM, double scale, at::ScalarType dtype,
                   FeatureScale scale_of = FeatureScale::sums);

}  // namespace distil_xlstm::ops
