// Linear maps and point-wise gates of the xLSTM blocks (docs/mathematics.md 2, 3) as single differentiable steps. Letters: N tokens, D, P
// widths.
#pragma once

#include "config/choices.h"
#include "ops/linear.h"
#include "ops/tensor.h"

namespace distil_xlstm::ops {

// x W^T + b for a weight whose rows are two maps of equal size: returns both outputs [N, P], each contiguous. Products run in `dtype`
// (x and the weight are converted), gradients come back in the types of x, weight and bias. bias_Q may be undefined. Throws ShapeError.
std::pair<Tensor, Tensor> split_linear(const Tensor& x_ND, const LinearWeight& w_QD, const Tensor& bias_Q, at::ScalarType dtype);

// residual + x W^T + b: x in `dtype` for the product, the sum in the residual's type. bias_D may be undefined. Throws ShapeError.
Tensor residual_linear(const Tensor& residual_ND, const Tensor& x_NP, const LinearWeight& w_DP, const Tensor& bias_D, at::ScalarType dtype);

using config::Activation;  // gelu is the exact one, of erf

// act(gate) * value.
Tensor gated_activation(const Tensor& gate_NP, const Tensor& value_NP, Activation act);

// SiLU(gate) * up of a joint product whose last dimension holds the gate's half, then the up half: [..., 2 I] -> [..., I].
// Differentiable; keeps its input. Throws ShapeError.
Tensor swiglu(const Tensor& gate_up);

// swiglu(x W^T) for x [..., K] and W [2 I, K]. On GPUs that have a kernel for it (compute capability 9.0, half precision) and for as many
// rows as fill one, gate and up are never written, nor rounded. Throws ShapeError.
Tensor swiglu_product(const Tensor& x, const Tensor& weight_2IK);

// (h + skip c) * SiLU(z), in the type of z: the end of an mLSTM layer. skip_P is one factor a feature.
Tensor skip_gate(const Tensor& h_NP, const Tensor& skip_P, const Tensor& c_NP, const Tensor& z_NP);

}  // namespace distil_xlstm::ops
