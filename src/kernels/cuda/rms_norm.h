// RMSNorm on CUDA, with the residual sum before it. Letters: N rows, D width. Forward alone: the teacher has no gradient.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

// sum = x + residual, rounded to the type; y = sum / sqrt(mean(sum^2) + eps) * weight, in float.
// A row is at most kRmsNormMaxVectors of 16 bytes, or as many single values where rows are not multiples of 16 bytes.
inline constexpr int kRmsNormMaxVectors = 4096;
struct RmsNorm {
  Type type;  // of all tensors
  int64_t N;
  int D;
  float eps;
  const void* x_ND;
  const void* residual_ND;  // or null
  const void* weight_D;
  void* sum_ND;  // may be x; unused without a residual
  void* y_ND;
};
cudaError_t rms_norm_forward(const RmsNorm& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
