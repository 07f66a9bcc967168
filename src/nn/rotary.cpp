#include "nn/rotary.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "ops/rotary.h"

namespace distil_xlstm::nn {
namespace {

Tensor llama3_frequencies(const Tensor& frequencies, const RopeConfig& config) {
  const Tensor wavelengths = 2 * M_PI / frequencies;
  const Tensor weight =
      (config.original_context / wavelengths - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
  const Tensor blended = (1 - weight) * frequencies / config.factor + weight * frequencies;
  const Tensor stretched =
      at::where(wavelengths > config.original_context / config.low_freq_factor, frequencies / config.factor, frequencies);
  const Tensor is_between = (wavelengths >= config.original_context / config.high_freq_factor) &
                            (wavelengths <= config.original_context / config.low_freq_factor);
  return at::where(is_between, blended, stretched);
}

Tensor yarn_frequencies(const Tensor& powers, const RopeConfig& config, int64_t head_dim) {
  // The channel whose angle turns `turns` times over the original context.
  auto channel_of = [&](double turns) {
    return static_cast<double>(head_dim) * std::log(config.original_context / (turns * 2 * M_PI)) / (2 * std::log(config.theta));
  };
  double low = channel_of(config.beta_fast), high = channel_of(config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;
  const Tensor kept = 1 - ((at::arange(head_dim / 2, at::kFloat) - low) / (high - low)).clamp(0, 1);
  return (1.0 / (config.factor * powers)) * (1 - kept) + (1.0 / powers) * kept;
}

Tensor scaled_frequencies(const RopeConfig& config, int64_t head_dim) {
  const Tensor powers = at::pow(config.theta, at::arange(0, head_dim, 2, at::kFloat) / static_cast<double>(head_dim));
  switch (config.scaling) {
    case RopeScaling::linear:
      return (1.0 / powers) / config.factor;
    case RopeScaling::llama3:
      return llama3_frequencies(1.0 / powers, config);
    case RopeScaling::yarn:
      return yarn_frequencies(powers, config, head_dim);
    case RopeScaling::none:
      break;
  }
  return 1.0 / powers;
}

}  // namespace

Tensor rope_frequencies(const RopeConfig& config, int64_t head_dim) {
  Tensor frequencies = scaled_frequencies(config, head_dim);
  if (config.max_wavelength == 0.0) return frequencies;
  return frequencies.masked_fill(2 * M_PI / frequencies > config.max_wavelength, 0.0);
}

Rotary::Rotary(const RopeConfig& config, int64_t head_dim, at::Device device)
    : device_(device), attention_factor_(config.attention_factor), frequencies_(rope_frequencies(config, head_dim)) {
  if (head_dim < 2 || head_dim % 2 != 0) throw ShapeError("rotary embedding: head_dim = {} must be even", head_dim);
}

std::pair<Tensor, Tensor> Rotary::tables(int64_t num_positions) const {
  const std::scoped_lock lock(*mutex_);
  if (!cos_.defined() || cos_.size(0) < num_positions) {
    const int64_t grown = std::max<int64_t>(num_positions, cos_.defined() ? 2 * cos_.size(0) : 512);
    const Tensor angles = at::arange(grown, at::kFloat).unsqueeze(1) * frequencies_;
    cos_ = (angles.cos() * attention_factor_).to(device_);
    sin_ = (angles.sin() * attention_factor_).to(device_);
  }
  return {cos_, sin_};
}

void Rotary::check_heads(const Tensor& x_BSHK) const {
  if (x_BSHK.size(3) / 2 != frequencies_.size(0)) {
    throw ShapeError("rotary embedding: heads of width {}, the table is for {}", x_BSHK.size(3), 2 * frequencies_.size(0));
  }
}

void Rotary::rotate_(const Tensor& x_BSHK, int64_t first_position) const {
  check_heads(x_BSHK);
  const auto [cos_TI, sin_TI] = tables(first_position + x_BSHK.size(1));
  ops::rotate_(x_BSHK, cos_TI, sin_TI, first_position);
}

Tensor Rotary::rotate(const Tensor& x_BSHK, int64_t first_position) const {
  check_heads(x_BSHK);
  const auto [cos_TI, sin_TI] = tables(first_position + x_BSHK.size(1));
  return ops::rotate(x_BSHK, cos_TI, sin_TI, first_position);
}

}  // namespace distil_xlstm::nn
