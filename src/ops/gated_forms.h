// The implementations behind gated_activation and skip_gate. Letters: N rows, P or F widths.
#pragma once

#include <utility>

#include "ops/gated.h"

namespace distil_xlstm::ops {

// The kernels that cuda_backend() may hold take gate and value of one type, contiguous; gradients contiguous too.
Tensor gated_activation_aten(const Tensor& gate_NP, const Tensor& value_NP, Activation act);
// Gradients of gate and value.
std::pair<Tensor, Tensor> gated_activation_backward_aten(const Tensor& grad_NP, const Tensor& gate_NP, const Tensor& value_NP,
                                                         Activation act);

struct SkipGateGradients {
  Tensor h_NF, skip_F, c_NF, z_NF;
};
// The kernels take c and z of one type, h of the same or bfloat16 with float16, skip in float32 (and so is its gradient), all contiguous.
Tensor skip_gate_aten(const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF, const Tensor& z_NF);
SkipGateGradients skip_gate_backward_aten(const Tensor& grad_NF, const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF,
                                          const Tensor& z_NF);

}  // namespace distil_xlstm::ops
