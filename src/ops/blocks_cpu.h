// The head-wise maps and gates of the blocks on CPU tensors: views of memory for kernels/cpu, tasks spread over LibTorch's threads.
#pragma once

#include "ops/gated_forms.h"

namespace distil_xlstm::ops {

// Whether the vectorised loops take these; otherwise tensor operations do.
bool has_blockdiag4_cpu(const Tensor& x, const Tensor& weight_GOI);
bool has_headwise_cpu(const Tensor& x, int64_t head_dim, int64_t outputs);
bool has_gelu_gate_cpu(const Tensor& gate, const Tensor& value);
bool has_swiglu_cpu(const Tensor& gate_up);
bool has_skip_gate_cpu(const Tensor& h, const Tensor& c, const Tensor& z);

// Blocks of 4 x 4; rows of x may be parts of longer ones.
Tensor blockdiag4_cpu(const Tensor& x_NF, const Tensor& weight_GOI, const Tensor& bias_F);
// grad_x_NF (+)= grad W.
void blockdiag4_input_cpu(const Tensor& grad_NF, const Tensor& weight_GOI, const Tensor& grad_x_NF, bool accumulate);
Tensor blockdiag4_weight_cpu(const Tensor& grad_NF, const Tensor& x_NF, int64_t num_blocks);

// wx_NHC[:, :, offset : offset + J] = x W for w_HJK ([head][out][in]), and its gradients [N, H K] and [H, J, K].
void headwise_cpu(const Tensor& x_NF, const Tensor& w_HJK, const Tensor& wx_NHC, int64_t offset);
std::pair<Tensor, Tensor> headwise_backward_cpu(const Tensor& grad_NHC, int64_t offset, const Tensor& x_NF, const Tensor& w_HJK);

// silu(first half) * second half of the last dimension, one pass.
// The gradient of gate_up; all contiguous and of one type.
Tensor swiglu_backward_cpu(const Tensor& grad, const Tensor& gate_up);

bool has_sigmoid_gate_cpu(const Tensor& gate, const Tensor& value);
Tensor sigmoid_gate_cpu(const Tensor& gate, const Tensor& value);
std::pair<Tensor, Tensor> sigmoid_gate_backward_cpu(const Tensor& grad, const Tensor& gate, const Tensor& value);

Tensor swiglu_cpu(const Tensor& gate_up);
Tensor gelu_gate_cpu(const Tensor& gate_NP, const Tensor& value_NP);
std::pair<Tensor, Tensor> gelu_gate_backward_cpu(const Tensor& grad_NP, const Tensor& gate_NP, const Tensor& value_NP);

Tensor skip_gate_cpu(const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF, const Tensor& z_NF);
SkipGateGradients skip_gate_backward_cpu(const Tensor& grad_NF, const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF,
                                         const Tensor& z_NF);

}  // namespace distil_xlstm::ops
