// Rotary position embedding in the half-split form (channel i turns with channel i + head_dim / 2), with the scaling rules
// of long-context checkpoints.
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "ops/tensor.h"

namespace distil_xlstm::nn {

// How a checkpoint stretches its angles. Frequencies before scaling: f_i = theta^(-2 i / head_dim).
//   none    f
//   linear  f / factor
//   llama3  f / factor for wavelengths above original_context / low_freq_factor, f below original_context / high_freq_factor,
//           blended between
//   yarn    f / factor and f blended over the channels that turn beta_slow to beta_fast times within original_context
enum class RopeScaling { none, linear, llama3, yarn };

struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;
  double original_context = 0.0;  // positions seen in pre-training, before stretching
  double low_freq_factor = 1.0, high_freq_factor = 4.0;
  double beta_fast = 32.0, beta_slow = 1.0;
  bool truncate = true;           // yarn: round the blended range outwards to whole channels
  double attention_factor = 1.0;  // multiplies cos and sin
  double max_wavelength = 0.0;    // positions; frequencies that take more for a turn are 0. 0: none are
};

// The head_dim / 2 scaled frequencies, float32 on the CPU, with the roundings of float32 arithmetic that checkpoints were trained with.
Tensor rope_frequencies(const RopeConfig& config, int64_t head_dim);

// Tables of cos and sin by position, grown on demand. Several threads may use one.
class Rotary {
 public:
  Rotary(const RopeConfig& config, int64_t head_dim, at::Device device);
  // Turns x_BSHK in place: row s stands at position first_position + s. float32, float16 or bfloat16, any strides with contiguous heads.
  void rotate_(const Tensor& x_BSHK, int64_t first_position) const;
  // The same in a new tensor, differentiable.
  [[nodiscard]] Tensor rotate(const Tensor& x_BSHK, int64_t first_position) const;

 private:
  void check_heads(const Tensor& x_BSHK) const;
  [[nodiscard]] std::pair<Tensor, Tensor> tables(int64_t num_positions) const;  // cos and sin of at least so many [positions, K / 2]

  at::Device device_;
  double attention_factor_;
  Tensor frequencies_;                                                  // [K / 2]
  mutable Tensor cos_, sin_;                                            // [positions, K / 2], float32
  std::unique_ptr<std::mutex> mutex_ = std::make_unique<std::mutex>();  // of cos_ and sin_
};

}  // namespace distil_xlstm::nn
