// Rows of activations as 8-bit floats (e4m3) with a factor a row, for matrix products on fp8 tensor cores. Letters: N rows, K width.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

// What becomes fp8: x as it is, SiLU(gate) * up of a joint product, or RMSNorm(x) * weight.
enum class Fp8Source { values, swiglu, rms_norm };

// scale = largest magnitude of the row / 448, the largest e4m3 value, at least the smallest normal float32; values = round(row / scale).
// K is a multiple of 16 bytes of x, at most kFp8MaxVectors of them; every tensor begins at a multiple of 16 bytes.
inline constexpr int kFp8MaxVectors = 8192;
struct Fp8Rows {
  Type type;  // of x and weight
  Fp8Source source;
  int64_t N;
  int K;
  const void* x;         // [N, K]; swiglu: [N, 2 K], gate before up
  const void* weight_K;  // rms_norm
  float eps;
  void* values_NK;  // e4m3
  float* scale_N;
};
cudaError_t fp8_rows(const Fp8Rows& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
