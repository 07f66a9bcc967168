// What the differentiable linear maps share.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// Into `out`: grad^T x. A float32 sum of half-precision factors comes out of a GPU's product itself, unrounded and without another pass.
inline void weight_gradient_out(Tensor out_PD, const Tensor& grad_NP, const Tensor& x_ND) {
  if (out_PD.scalar_type() == x_ND.scalar_type()) {
    at::mm_out(out_PD, grad_NP.t(), x_ND);
  } else if (x_ND.is_cuda() && out_PD.scalar_type() == at::kFloat && x_ND.scalar_type() != at::kDouble) {
    at::mm_out(out_PD, grad_NP.t(), x_ND, at::kFloat);
  } else {
    out_PD.copy_(at::mm(grad_NP.t(), x_ND));
  }
}

// The weight in the type of a product; `converted` is taken where it has that.
inline Tensor in_type(const Tensor& weight, const std::optional<Tensor>& converted, at::ScalarType dtype) {
  return converted && converted->scalar_type() == dtype ? *converted : weight.to(dtype);
}

}  // namespace distil_xlstm::ops
