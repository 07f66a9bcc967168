// The implementations behind causal_conv and causal_conv_silu. J = K - 1: rows of the state.
#pragma once

#include "ops/causal_conv.h"

namespace distil_xlstm::ops {

struct CausalConvBackward {
  Tensor grad_x_BSF, grad_weight_FK, grad_bias_F, grad_initial_BJF;
};

// Everything contiguous and in the type to compute in; is_start_BS uint8 or undefined; initial_BJF and, in backward, grad_state_BJF
// defined, but for the kernels that cuda_backend() may hold: those take an undefined one as zeros, and give no gradient of such an initial
// state.
CausalConvOutput causal_conv_forward_cpu(const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                         const Tensor& is_start_BS, bool has_silu);
CausalConvOutput causal_conv_forward_aten(const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                          const Tensor& is_start_BS, bool has_silu);

CausalConvBackward causal_conv_backward_cpu(const Tensor& grad_y_BSF, const Tensor& grad_state_BJF, const Tensor& x_BSF,
                                            const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                            const Tensor& is_start_BS, bool has_silu);
CausalConvBackward causal_conv_backward_aten(const Tensor& grad_y_BSF, const Tensor& grad_state_BJF, const Tensor& x_BSF,
                                             const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                             const Tensor& is_start_BS, bool has_silu);

}  // namespace distil_xlstm::ops
