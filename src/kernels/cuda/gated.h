// Gates on CUDA: act(gate) * value, and the mLSTM's (h + skip * c) * silu(z) (docs/mathematics.md 2, 3). Letters: N rows, P or F features.
// Outputs must not overlap inputs. Arithmetic is float. Bytes: every tensor once.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

// In the order of ops/gated_forms.h. gelu is the erf form; swish is the teacher's silu.
enum class Activation { gelu, relu, relu_squared, sigmoid, swish, selu };

struct GatedActivation {
  Type type;  // of all tensors
  Activation act;
  int64_t N;
  int P;
  int64_t stride, grad_stride;  // from row to row of gate and value, and of their gradients: halves of one product may be given
  const void *gate_NP, *value_NP;
  void* out_NP;  // contiguous
  // Backward only.
  const void* grad_out_NP;
  void *grad_gate_NP, *grad_value_NP;
};
cudaError_t gated_activation_forward(const GatedActivation& x, cudaStream_t stream);
cudaError_t gated_activation_backward(const GatedActivation& x, cudaStream_t stream);

inline constexpr int kSkipGateRows = 16;  // rows per partial sum of skip's gradient: R = ceil(N / kSkipGateRows) partial sums

struct SkipGate {
  Type type;    // of c, z, out and their gradients
  Type h_type;  // of h and its gradient: `type`, or bfloat16 with float16 (the cell's output)
  int64_t N;
  int F;
  const void* h_NF;
  const float* skip_F;
  const void *c_NF, *z_NF;
  void* out_NF;
  // Backward only.
  const void* grad_out_NF;
  void *grad_h_NF, *grad_c_NF, *grad_z_NF;
  float* grad_skip_RF;
};
cudaError_t skip_gate_forward(const SkipGate& x, cudaStream_t stream);
cudaError_t skip_gate_backward(const SkipGate& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
