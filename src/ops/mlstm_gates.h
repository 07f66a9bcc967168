// The mLSTM's input and forget gates: linear maps of q, k and v of all heads (docs/mathematics.md 3). Letters: N tokens, I inner width,
// H heads, J = 3 I.
#pragma once

#include <array>

#include "ops/tensor.h"

namespace distil_xlstm::ops {

struct MlstmGateWeights {
  Tensor input_HJ, input_bias_H, forget_HJ, forget_bias_H;  // columns in the order q, k, v
};
struct MlstmGates {
  Tensor input_NH, forget_NH;
  std::array<Tensor, 3> qkv;  // as given, of cell_sizes, for the cell to read: its gradients are then added in the projection's backward
};

// Pre-activations [q; k; v] W^T + b in the weights' type, which is float32 or float64: they go into exponentials (docs/mathematics.md 9).
// Differentiable in all.
// bfloat16 on CUDA: q, k and v are read as they are, and products sum in float32 over weights split in two bfloat16 parts, within 2^-17 of
// the weights; so are gates' gradients in the products for the weights. For q, k and v, whose gradients have 8 bits anyway, the first
// parts serve. cell_sizes: other sizes for q, k and v to be handed on in. Throws ShapeError.
MlstmGates mlstm_gate_projection(const std::array<Tensor, 3>& qkv_NI, const MlstmGateWeights& weights, at::IntArrayRef cell_sizes = {});

}  // namespace distil_xlstm::ops
