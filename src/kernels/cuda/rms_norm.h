// RMSNorm on CUDA. Letters: N rows, D width. Forward alone: the teacher has no gradient.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

// y = x / sqrt(mean(x^2) + eps) * weight, in float.
// A row is at most kRmsNormMaxVectors of 16 bytes, or as many single values where rows are not multiples of 16 bytes.
inline constexpr int kRmsNormMaxVectors = 4096;
struct RmsNorm {
  Type type;  // of all tensors
  int64_t N;
  int D;
  float eps;
  const void* x_ND;
  const void* weight_D;
  void* y_ND;     // not x
  void* copy_ND;  // a copy of x, or null
};
cudaError_t rms_norm_forward(const RmsNorm& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
