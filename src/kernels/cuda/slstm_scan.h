// The sLSTM scan on CUDA (spec 1.3, 6.1): one persistent block per head and tile of batch rows walks over time; nothing outside the block
// is waited for. Letters: B batch, S sequence, H heads, G = 4 gates i f z o, K head width (at most 1024), X = 7 saved values as in
// kernels/cpu/kernels.h. R comes in the activations' type, and stays in shared memory where it fits; else it is read through L2 each step.
// Bytes per step and head: 8 K^2 of R (2-byte types) from shared memory, 8 K from device memory and 30 K back per row.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

inline constexpr int kSlstmSaved = 7;
inline constexpr int kSlstmMaxHeadWidth = 1024;

struct SlstmForward {
  Type type;  // of wx, r, y
  int B, S, H, K;
  const void *wx_BSHGK, *r_HKGK;
  const float* bias_HGK;
  const uint8_t* is_start_BS;  // or null
  const float* initial_hidden_BHK;
  float *hidden_BHK, *cell_BHK, *normalizer_BHK,
      *stabilizer_BHK;  // hidden: written; the others hold the initial state and end with the final one
  void* y_BSHK;
  float* saved_BSHXK;  // or null
};
cudaError_t slstm_forward(const SlstmForward& x, cudaStream_t stream);

struct SlstmBackward {
  Type type;  // of grad_y, y, r, grad_wx
  int B, S, H, K;
  const void *grad_y_BSHK, *y_BSHK;
  const float* saved_BSHXK;
  const void* r_transposed_HGKK;  // [head][gate][out][in]
  const float *initial_cell_BHK, *initial_normalizer_BHK;
  const uint8_t* is_start_BS;
  float *grad_hidden_BHK, *grad_cell_BHK, *grad_normalizer_BHK;  // hold the final state's gradients, end with the initial state's
  void* grad_wx_BSHGK;
};
cudaError_t slstm_backward(const SlstmBackward& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
