// Depthwise causal convolution over time (docs/mathematics.md 1), with SiLU behind it or without.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

struct CausalConvOutput {
  Tensor y_BSF;
  Tensor state_BJF;  // the last K - 1 inputs (J = K - 1), oldest first: what the next segment needs
  Tensor x_BSF;      // x as given, for others to read: their gradients are then added in the convolution's own backward
};

// y[t,f] = SiLU(bias[f] + sum_j weight[f,0,j] x[t-K+1+j, f]); taps before a document's start (is_start_BS) or before the initial state are
// 0. weight_F1K, bias_F. Differentiable in x, weight, bias, and the initial state.
CausalConvOutput causal_conv_silu(const Tensor& x_BSF, const Tensor& weight_F1K, const Tensor& bias_F, const Tensor& initial_state_BJF = {},
                                  const Tensor& is_start_BS = {});

// The same without bias and SiLU.
CausalConvOutput causal_conv(const Tensor& x_BSF, const Tensor& weight_F1K, const Tensor& initial_state_BJF = {},
                             const Tensor& is_start_BS = {});

}  // namespace distil_xlstm::ops
