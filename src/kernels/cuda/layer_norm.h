// Grouped LayerNorm with factor (1 + weight) on CUDA (docs/mathematics.md 1), and RMSNorm by the same kernels: mean 0, factor weight.
// Letters: N rows, G groups, K width of a group; statistics in float.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

// Rows per partial sum of the weight's gradient: P = ceil(N / norm_block_rows(N)) partial sums.
int norm_block_rows(int64_t N);

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
  // Forward: the norm is of sum = x + added, which it writes; of x where both are null. added has y's type, the sum x's.
  const void* added_NGK;
  void* sum_NGK;
  // Backward only: of what is normalized, plus `grad_residual`, of the same type, where that is not null.
  const void* grad_y_NGK;
  const void* grad_residual_NGK;
  void* grad_x_NGK;
  float* grad_weight_PGK;
  bool is_rms = false;  // RMSNorm
};
cudaError_t layer_norm_forward(const LayerNorm& x, cudaStream_t stream);
cudaError_t layer_norm_backward(const LayerNorm& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
