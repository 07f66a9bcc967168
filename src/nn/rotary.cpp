#include "nn/rotary.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

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

// One pass over memory for the case that matters on a CPU.
void rotate_float_cpu(const Tensor& x_BSHK, const float* cos, const float* sin) {
  const int64_t S = x_BSHK.size(1), H = x_BSHK.size(2), half = x_BSHK.size(3) / 2;
  const int64_t stride_b = x_BSHK.stride(0), stride_s = x_BSHK.stride(1), stride_h = x_BSHK.stride(2);
  float* x = x_BSHK.data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, H * half));
  at::parallel_for(0, x_BSHK.size(0) * S, grain, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t s = row % S;
      const float* __restrict c = cos + s * half;
      const float* __restrict d = sin + s * half;
      for (int64_t h = 0; h < H; ++h) {
        float* __restrict first = x + (row / S) * stride_b + s * stride_s + h * stride_h;
        float* __restrict second = first + half;
        for (int64_t i = 0; i < half; ++i) {
          const float a = first[i], b = second[i];
          first[i] = a * c[i] - b * d[i];
          second[i] = b * c[i] + a * d[i];
        }
      }
    }
  });
}

}  // namespace

Tensor rope_frequencies(const RopeConfig& config, int64_t head_dim) {
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

Rotary::Rotary(const RopeConfig& config, int64_t head_dim, at::Device device)
    : device_(device), attention_factor_(config.attention_factor), frequencies_(rope_frequencies(config, head_dim)) {
  if (head_dim < 2 || head_dim % 2 != 0) throw ShapeError("rotary embedding: head_dim = {} must be even", head_dim);
}

std::pair<Tensor, Tensor> Rotary::tables(int64_t first_position, int64_t size) {
  const std::scoped_lock lock(*mutex_);
  const int64_t needed = first_position + size;
  if (!cos_.defined() || cos_.size(0) < needed) {
    const int64_t grown = std::max<int64_t>(needed, cos_.defined() ? 2 * cos_.size(0) : 512);
    const Tensor angles = at::arange(grown, at::kFloat).unsqueeze(1) * frequencies_;
    cos_ = (angles.cos() * attention_factor_).to(device_);
    sin_ = (angles.sin() * attention_factor_).to(device_);
  }
  return {cos_.narrow(0, first_position, size), sin_.narrow(0, first_position, size)};
}

void Rotary::rotate_(const Tensor& x_BSHK, int64_t first_position) {
  const int64_t S = x_BSHK.size(1), half = x_BSHK.size(3) / 2;
  if (half != frequencies_.size(0)) {
    throw ShapeError("rotary embedding: heads of width {}, the table is for {}", x_BSHK.size(3), 2 * frequencies_.size(0));
  }
  const auto [cos, sin] = tables(first_position, S);
  if (x_BSHK.is_cpu() && x_BSHK.scalar_type() == at::kFloat && x_BSHK.stride(3) == 1) {
    return rotate_float_cpu(x_BSHK, cos.data_ptr<float>(), sin.data_ptr<float>());
  }
  const Tensor cos_S1I = cos.unsqueeze(1), sin_S1I = sin.unsqueeze(1);
  Tensor first = x_BSHK.narrow(3, 0, half), second = x_BSHK.narrow(3, half, half);
  const Tensor turned = first * cos_S1I - second * sin_S1I;
  second.copy_(second * cos_S1I + first * sin_S1I);
  first.copy_(turned);
}

}  // namespace distil_xlstm::nn
