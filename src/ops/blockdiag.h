// Head-wise (block-diagonal) linear maps of both mixers (docs/mathematics.md 1 to 3), those of one mixer in one step.
// Letters: N tokens, F features, G blocks, O and I widths of a block's output and input, H heads, K head width.
#pragma once

#include <array>

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// One projection: y[g O + a] = sum_b weight[g, a, b] x[g I + b] (+ bias).
struct BlockDiagonal {
  Tensor weight_GOI;
  Tensor bias_F;  // or undefined
};

struct QkvProjection {
  std::array<Tensor, 3> qkv_NF;
  Tensor c_NF;  // as given, for others to read: their gradients are then added in the projections' own backward
};
// q, k, v, each [N, F] in `out_dtype`: q and k from c, v from x, both [N, F] of one dtype, in which the products run. Differentiable in
// c, x, weights and biases. Float32 with blocks of 4 on a CPU runs its own vectorised loop, everything else one batched product a
// projection. Throws ShapeError.
QkvProjection qkv_projection(const Tensor& c_NF, const Tensor& x_NF, const BlockDiagonal& q, const BlockDiagonal& k, const BlockDiagonal& v,
                             at::ScalarType out_dtype);

// Whether qkv_projection of this activation's type and device takes weights of `block` x `block` in float32, whatever the products' type.
bool qkv_takes_float32_weights(const Tensor& activation, int64_t block);

// The sLSTM's four gate pre-activations [N, H, 4, K] in slot order i f z o: input and forget gate from c, cell input and output gate from
// x, both [N, H K]; weights [H, K, K] as [head][out][in]. Products run in `dtype`, which is also the result's. Differentiable in all.
// converted: the weights in `dtype`, where the caller keeps them from step to step.
Tensor slstm_gate_projection(const Tensor& c_NF, const Tensor& x_NF, const Tensor& input_HKK, const Tensor& forget_HKK,
                             const Tensor& cell_HKK, const Tensor& output_HKK, at::ScalarType dtype,
                             const std::array<Tensor, 4>& converted = {});

}  // namespace distil_xlstm::ops
