// Causal self-attention inside documents for heads so narrow that a library's matrix products do not pay (small teachers on a CPU).
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// Whether narrow_attention serves such a model: float32 or float64 on a CPU, heads of at most 32 channels.
bool has_narrow_attention(const at::TensorOptions& options, int64_t head_dim);

// softmax(q k^T / sqrt(K)) v over the keys up to each query's own place and of its own document.
//   q_BSHK, k_BSGK, v_BSGK  contiguous, or narrowed in the third dimension only; H is a multiple of G, and the heads of a group follow each
//                           other
//   is_start_BS             uint8, 1 where a document begins, or undefined: one document a row
// Returns [B, S, H, K], contiguous. No gradient is made. Throws ShapeError where sizes do not fit.
Tensor narrow_attention(const Tensor& q_BSHK, const Tensor& k_BSGK, const Tensor& v_BSGK, const Tensor& is_start_BS);

}  // namespace distil_xlstm::ops
