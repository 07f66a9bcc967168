// Rotary positions on CUDA, in place. Letters: B batch, S sequence, H heads to turn, K head width, T positions of the tables, I = K / 2.
// Forward alone: the teacher has no gradient.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

// Channels i and i + K / 2 of each head turn by the angle of position first_position + s:
//   x_i, x_{i + K / 2}  <-  x_i cos - x_{i + K / 2} sin,  x_{i + K / 2} cos + x_i sin
// Arithmetic is float. Bytes: the heads once in and once out, and the rows of the tables once a head (from cache).
struct Rotary {
  Type type;  // of x
  int64_t B, S;
  int H, K;                                       // K is even
  int64_t batch_stride, row_stride, head_stride;  // of x, in elements; a head's channels are contiguous, heads must not overlap
  void* x_BSHK;                                   // may be the first heads of a joint q, k, v product
  const float *cos_TI, *sin_TI;                   // contiguous; T is at least first_position + S
  int64_t first_position;
};
cudaError_t rotate_heads(const Rotary& args, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
