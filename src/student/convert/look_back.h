// What a converted layer's starting values take from the attention that it replaces, on rows that the teacher read (docs/convert.md).
#pragma once

#include <utility>

#include "nn/rotary.h"
#include "student/convert/weights.h"

namespace distil_xlstm::student {

// The attention that a layer's q, k and v make of the stream x_BSD behind its norm: the teacher's, as long as nothing was trained. Of long
// rows the first 1024 tokens count. `weights`: of q, k and v, or of q and k alone, which value_factors does not do with. is_start_BS
// (uint8, or undefined) cuts it. No gradient.
class LayerAttention {
 public:
  LayerAttention(const ConvertConfig& config, const Tensor& norm_D, const CellWeights& weights, const Tensor& x_BSD,
                 const Tensor& is_start_BS);

  // Mean over queries of sum_j a_ij (i - j), head by head [H]. Queries of a row's first quarter do not count.
  [[nodiscard]] Tensor mean_look_back() const;
  // Head by head [H], the factor of `mixed_BSE`, what a mixer makes in its place, that comes nearest to its output by least squares, in
  // [0.1, 10]; 1 where the mixer gives nothing.
  [[nodiscard]] Tensor value_factors(const Tensor& mixed_BSE) const;
  // The same channel by channel [E], without limits.
  [[nodiscard]] Tensor channel_factors(const Tensor& mixed_BSE) const;

 private:
  // Sums over tokens of output times `mixed_BSE`, and of that squared, channel by channel [H, K] in float64.
  [[nodiscard]] std::pair<Tensor, Tensor> products(const Tensor& mixed_BSE) const;
  // Shares a_ij of one row [H, S, S].
  [[nodiscard]] Tensor shares(int64_t row) const;

  int64_t num_tokens_;
  Tensor distance_SS_;
  Tensor q_BHSK_, k_BHSK_, v_BHSK_, is_start_BS_;
};

// Pre-activation of a forget gate whose memory halves in so many tokens, within 2 to 2 000 [H].
Tensor forget_gate_of(const Tensor& half_life_H);

}  // namespace distil_xlstm::student
