// Depthwise causal convolution on CUDA, with SiLU behind it or without (docs/mathematics.md 1). Letters: B batch, S sequence, F features, K
// taps, J = K - 1.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

inline constexpr int kConvMaxTaps = 16;
inline constexpr int kConvChunk = 32;  // tokens per partial sum of the weight's gradient: P = B * ceil(S / kConvChunk) partial sums

struct CausalConv {
  Type type;  // of x, y, initial, state and their gradients
  int B, S, F, K;
  const void* x_BSF;
  const float *weight_FK, *bias_F;
  const void* initial_BJF;     // or null: zeros
  const uint8_t* is_start_BS;  // or null
  void *y_BSF, *state_BJF;
  bool has_silu = true;  // y is the sum alone where not
};
// Whether threads walk over tokens with 2 features each and the last taps in registers, so that every tensor moves once: 4 taps, F a
// multiple of 2, everything at multiples of 16 bytes (in backward the gradients too).
bool causal_conv_holds_window(const CausalConv& x);
cudaError_t causal_conv_forward(const CausalConv& x, cudaStream_t stream);

struct CausalConvBackward {
  CausalConv forward;                       // y, state unused
  const void *grad_y_BSF, *grad_state_BJF;  // of the state: or null
  const void* grad_residual_BSF;            // added to the gradient of x; or null
  float* grad_pre_BSF;                      // workspace, the gradient of the sums: null if causal_conv_holds_window(forward)
  void *grad_x_BSF, *grad_initial_BJF;      // of the initial state: or null
  float *grad_weight_PKF, *grad_bias_PF;
};
cudaError_t causal_conv_backward(const CausalConvBackward& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
