// The implementations behind causal_conv_silu. J = K - 1: rows of the state.
#pragma once

#include "ops/causal_conv.h"

namespace distil_xlstm::ops {

struct CausalConvBackward {
  Tensor grad_x_BSF, grad_weight_FK, grad_bias_F, grad_initial_BJF;
};

// Everything contiguous and in the type to compute in; initial_BJF defined; is_start_BS uint8 or undefined.
CausalConvOutput causal_conv_forward_cpu(const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                         const Tensor& is_start_BS);
CausalConvOutput causal_conv_forward_aten(const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                          const Tensor& is_start_BS);

CausalConvBackward causal_conv_backward_cpu(const Tensor& grad_y_BSF, const Tensor& grad_state_BJF, const Tensor& x_BSF,
                                            const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                            const Tensor& is_start_BS);
CausalConvBackward causal_conv_backward_aten(const Tensor& grad_y_BSF, const Tensor& grad_state_BJF, const Tensor& x_BSF,
                                             const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                             const Tensor& is_start_BS);

}  // namespace distil_xlstm::ops
