// Grouped LayerNorm with factor (1 + weight) on CUDA (docs/mathematics.md 1). Letters: N rows, G groups, K width of a group; statistics in
// float.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

inline constexpr int kNormBlockRows = 32;  // rows per partial sum of the weight's gradient: P = ceil(N / kNormBlockRows) partial sums

struct LayerNorm {
  Type type;    // of x and its gradient
  Type y_type;  // of y and its gradient: `type`, or any with float32
  int64_t N;
  int G, K;
  float eps;
  const void* x_NGK;
  const float* weight_GK;
  void* y_NGK;
  float *mean_NG, *rstd_NG;
  // Backward only.
  const void* grad_y_NGK;
  void* grad_x_NGK;
  float* grad_weight_PGK;
};
cudaError_t layer_norm_forward(const LayerNorm& x, cudaStream_t stream);
cudaError_t layer_norm_backward(const LayerNorm& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
