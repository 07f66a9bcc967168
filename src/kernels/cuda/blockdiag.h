// q, k and v of the mLSTM from blocks of 4 features (docs/mathematics.md 3): q = Wq c + bq, k = Wk c + bk, v = Wv x + bv, each W
// block-diagonal. Letters: N rows, G blocks, F = 4 G features, O = I = 4 outputs and inputs of a block. Outputs must not overlap inputs.
// Arithmetic is float. Bytes: every tensor once.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

inline constexpr int kBlockdiagRows = 64;  // rows per partial sum of the weights' gradients: R = ceil(N / kBlockdiagRows) partial sums

struct Blockdiag4 {
  Type type;      // of c, x and their gradients
  Type out_type;  // of q, k, v and their gradients: `type`, or bfloat16 with float16 (the cell's input)
  int64_t N;
  int G;
  const void *c_NF, *x_NF;     // aligned for 4 values, as all activations here
  const float* weight_GOI[3];  // of q, k, v; 16-byte aligned
  const float* bias_F[3];      // or null
  void* out_NF[3];             // q, k, v
  // Backward only.
  const void* grad_out_NF[3];
  const void* grad_residual_NF;  // added to the gradient of c; or null
  void *grad_c_NF, *grad_x_NF;
  float* grad_weight_R3GOI;
  float* grad_bias_R3F;  // or null
};
cudaError_t blockdiag4_forward(const Blockdiag4& x, cudaStream_t stream);
cudaError_t blockdiag4_backward(const Blockdiag4& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
