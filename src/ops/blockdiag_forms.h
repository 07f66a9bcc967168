// The implementations behind qkv_projection. Letters: N tokens, F features, G blocks, O and I widths of a block's output and input.
#pragma once

#include <array>

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// Of q, k and v.
struct QkvMaps {
  std::array<Tensor, 3> weight_GOI;
  std::array<Tensor, 3> bias_F;  // all defined, or none
};
struct QkvBackward {
  Tensor c_NF, x_NF;
  QkvMaps maps;
};

// Weights and biases in the type of c and x, whose rows may be parts of longer ones. The kernels that cuda_backend() may hold take blocks
// of 4, weights and biases (and so their gradients) in float32, all but the
// gradients of q, k and v contiguous, and out_dtype as c or bfloat16 with float16. Those gradients come in out_dtype.
std::array<Tensor, 3> qkv_forward_aten(const Tensor& c_NF, const Tensor& x_NF, const QkvMaps& maps, at::ScalarType out_dtype);
QkvBackward qkv_backward_aten(const std::array<Tensor, 3>& grad_NF, const Tensor& c_NF, const Tensor& x_NF, const QkvMaps& maps);

}  // namespace distil_xlstm::ops
