// The implementations behind residual_layer_norm. Letters: N rows, G groups, K width of a group.
#pragma once

#include "ops/norm.h"

namespace distil_xlstm::ops {

struct LayerNormForward {
  Tensor y_NGK, mean_NG, rstd_NG;
  Tensor sum_NGK;  // where something was added to x
};
struct LayerNormBackward {
  Tensor grad_x_NGK, grad_weight_GK;
};

// Everything contiguous and in the type to compute in; weight is the residual weight: the factor is (1 + weight).
LayerNormForward layer_norm_forward_cpu(const Tensor& x_NGK, const Tensor& weight_GK, double eps);
LayerNormForward layer_norm_forward_aten(const Tensor& x_NGK, const Tensor& weight_GK, double eps, at::ScalarType y_type);
LayerNormBackward layer_norm_backward_cpu(const Tensor& grad_y_NGK, const Tensor& x_NGK, const Tensor& weight_GK, const Tensor& mean_NG,
                                          const Tensor& rstd_NG);
LayerNormBackward layer_norm_backward_aten(const Tensor& grad_y_NGK, const Tensor& x_NGK, const Tensor& weight_GK, const Tensor& mean_NG,
                                           const Tensor& rstd_NG);

// x and weight contiguous and in the type to compute in; no gradient.
Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps);
// Gradients of x and weight; all contiguous and of one type, float32 or float64.
std::pair<Tensor, Tensor> rms_norm_backward_cpu(const Tensor& grad_y, const Tensor& x, const Tensor& weight, double eps);

}  // namespace distil_xlstm::ops
