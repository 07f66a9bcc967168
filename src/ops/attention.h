// Causal self-attention inside documents on a CPU.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// Sizes of one call: B rows of S tokens, G heads of keys and values, K channels a head.
struct AttentionSizes {
  int64_t B, S, G, K;
};

// Whether causal_attention is the faster way than LibTorch's: float32 or float64 on a CPU, and heads of at most 32 channels, or up to 2 048
// tokens whose heads of keys keep all threads busy.
bool prefers_causal_attention(const at::TensorOptions& options, const AttentionSizes& sizes);

// softmax(q k^T / sqrt(K)) v over the keys up to each query's own place and of its own document.
//   q_BSHK, k_BSGK, v_BSGK  contiguous, or narrowed in the third dimension only; H is a multiple of G, and the heads of a group follow each
//                           other; float32 or float64 on a CPU
//   is_start_BS             uint8, 1 where a document begins, or undefined: one document a row
// Returns [B, S, H, K], contiguous. No gradient is made. Throws ShapeError where sizes do not fit.
Tensor causal_attention(const Tensor& q_BSHK, const Tensor& k_BSGK, const Tensor& v_BSGK, const Tensor& is_start_BS);

// The same for one query a head, as a token is decoded: q_BHK [B, H, K] over keys and values [B, G, S, K] (each token's channels
// contiguous, as a cache holds them), which all are seen. float32 or float64 on a CPU; the number of threads changes no bit. Returns [B, H,
// K]. No gradient is made. Throws ShapeError.
Tensor decode_attention(const Tensor& q_BHK, const Tensor& k_BGSK, const Tensor& v_BGSK);

}  // namespace distil_xlstm::ops
