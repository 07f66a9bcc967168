// The mLSTM's two gates around their tensor-core products (ops/mlstm_gates.h): float32 values in two bfloat16 parts, and the parts'
// products put together. Letters: N rows, P = 2 parts (high, low), G = 2 gates (input, forget), R values of a gate in a row, H heads.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

// high = bfloat16(x), low = bfloat16(x - high): together within 2^-17 of x.
struct GateSplit {
  int64_t N, R;
  const float *input_NR, *forget_NR;
  void* parts_NPGR;  // bfloat16
};
cudaError_t split_gates(const GateSplit& x, cudaStream_t stream);

// gate_NH = sums[high] + sums[low] + bias.
struct GateSums {
  int64_t N;
  int H;
  const float *sums_NPGH, *input_bias_H, *forget_bias_H;
  float *input_NH, *forget_NH;
};
cudaError_t sum_gate_parts(const GateSums& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
