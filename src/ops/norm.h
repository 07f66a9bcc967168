// Layer norms of xLSTM v1 (residual weight) and RMSNorm of the transformers, as fused differentiable operations.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// LayerNorm without bias whose factor is (1 + weight) (docs/mathematics.md 1), over num_groups contiguous groups of the last dimension
// (1: plain; NH: the multi-head norm). Statistics in float32 (float64 for float64). Differentiable in x and weight. The result has x's
// type, or `dtype`: a matrix product that follows then needs no conversion of its own.
Tensor residual_layer_norm(const Tensor& x, const Tensor& weight, int64_t num_groups = 1, std::optional<at::ScalarType> dtype = {});

struct AddNorm {
  Tensor sum, normed;
};
// The residual stream at a norm: sum = x + added (x itself where `added` is undefined), normed = residual_layer_norm(sum, weight, 1,
// dtype), in one kernel on a GPU. Differentiable in x, added and weight: the gradients of both results meet in the norm's own backward, so
// read the stream after the norm from `sum`. `added` may have another type; the sum has x's.
AddNorm add_norm(const Tensor& x, const Tensor& added, const Tensor& weight, std::optional<at::ScalarType> dtype = {});

// The same with RMSNorm, x * rsqrt(mean(x^2) + eps) * weight.
AddNorm add_rms_norm(const Tensor& x, const Tensor& added, const Tensor& weight, double eps, std::optional<at::ScalarType> dtype = {});

// x * rsqrt(mean(x^2) + eps) * weight, reduction in float32, in x's type. Differentiable in x and weight, whose gradients have their types.
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);
// The same and a copy of x, which a GPU's kernel writes while it reads x.
std::pair<Tensor, Tensor> rms_norm_and_copy(const Tensor& x, const Tensor& weight, double eps);

// The float32 sum of hidden states that come one after the other. On a GPU a few of them wait for one pass over the sum. No gradient.
class StateSum {
 public:
  // True: the state waits, and must stay as it is. `is_last`: no other will come, so that none has to wait any longer.
  bool add(const Tensor& state, bool is_last = false);
  [[nodiscard]] Tensor take();  // undefined where nothing was added

 private:
  void add_waiting();

  Tensor sum_;
  std::vector<Tensor> waiting_;
};

}  // namespace distil_xlstm::ops
