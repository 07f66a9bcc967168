#include "optim/adamw.h"

#include <ATen/core/grad_mode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>

#include "base/error.h"

namespace distil_xlstm::optim {
namespace {

std::vector<Tensor> gradients(const NamedTensors& parameters) {
  std::vector<Tensor> all;
  for (const auto& [name, parameter] : parameters) {
    if (parameter.grad().defined()) all.push_back(parameter.grad());
  }
  return all;
}

}  // namespace

AdamW::AdamW(const NamedTensors& parameters, const AdamWSettings& settings, const std::vector<ParameterRule>& rules) : settings_(settings) {
  if (rules.size() != parameters.size()) throw ValueError("optimizer: {} parameters, {} rules for them", parameters.size(), rules.size());
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto& [name, parameter] = parameters[i];
    if (!parameter.is_leaf() || parameter.scalar_type() != at::kFloat) {
      throw ValueError("optimizer: parameter {} is {}{}: it must be a float32 leaf", name, at::toString(parameter.scalar_type()),
                       parameter.is_leaf() ? "" : ", not a leaf");
    }
    Group& group = group_of(rules[i]);
    group.parameters.push_back(parameter);
    group.exp_avg.push_back(at::zeros_like(parameter.detach()));
    group.exp_avg_sq.push_back(at::zeros_like(parameter.detach()));
    state_.emplace_back("exp_avg." + name, group.exp_avg.back());
    state_.emplace_back("exp_avg_sq." + name, group.exp_avg_sq.back());
  }
}

AdamW::Group& AdamW::group_of(const ParameterRule& rule) {
  const double weight_decay = rule.decays ? settings_.weight_decay : 0.0;
  for (Group& group : groups_) {
    if (group.weight_decay == weight_decay && group.rate == rule.rate) return group;
  }
  Group& group = groups_.emplace_back();
  group.weight_decay = weight_decay;
  group.rate = rule.rate;
  return group;
}

void AdamW::step(double learning_rate, double divisor) {
  const at::NoGradGuard no_grad;
  ++steps_;
  for (Group& group : groups_) {
    std::vector<Tensor> parameters, grads, exp_avg, exp_avg_sq;
    for (size_t i = 0; i < group.parameters.size(); ++i) {
      const Tensor& grad = group.parameters[i].grad();
      if (!grad.defined()) continue;
      parameters.push_back(group.parameters[i]);
      grads.push_back(grad);
      exp_avg.push_back(group.exp_avg[i]);
      exp_avg_sq.push_back(group.exp_avg_sq[i]);
    }
    if (parameters.empty()) continue;
    // All parameters share the count of optimizer steps.
    const auto scalar = [&](double value) { return at::full({}, value, parameters[0].options().requires_grad(false)); };
    const std::vector<Tensor> steps(parameters.size(), scalar(static_cast<double>(steps_)));
    const auto grad_scale = divisor == 1.0 ? std::nullopt : std::optional<Tensor>(scalar(divisor));
    at::_fused_adamw_(parameters, grads, exp_avg, exp_avg_sq, {}, steps, group.rate * learning_rate, settings_.beta1, settings_.beta2,
                      group.weight_decay, settings_.eps, /*amsgrad=*/false, /*maximize=*/false, grad_scale);
    // The fused operation leaves version counters alone, and the student's converted weights go by them.
    for (const Tensor& parameter : parameters) parameter.unsafeGetTensorImpl()->bump_version();
  }
}

void AdamW::zero_grad() {
  for (Group& group : groups_) {
    for (Tensor& parameter : group.parameters) parameter.mutable_grad().reset();
  }
}

NamedTensors AdamW::state_tensors() const {
  return state_;
}

int64_t AdamW::steps() const {
  return steps_;
}

void AdamW::restore(const std::function<Tensor(const std::string&)>& tensor, int64_t steps) {
  const at::NoGradGuard no_grad;
  for (auto& [name, state] : state_) {
    const Tensor stored = tensor(name);
    if (!stored.defined() || stored.sizes() != state.sizes()) {
      throw DataError("optimizer state {}: the checkpoint has {}, the model needs [{}]: it belongs to another model", name,
                      stored.defined() ? fmt::format("[{}]", fmt::join(stored.sizes(), ", ")) : "none", fmt::join(state.sizes(), ", "));
    }
    state.copy_(stored);
  }
  steps_ = steps;
}

Tensor grad_norm(const NamedTensors& parameters) {
  const at::NoGradGuard no_grad;
  const std::vector<Tensor> grads = gradients(parameters);
  if (grads.empty())
    return at::zeros({}, parameters.empty() ? at::TensorOptions(at::kFloat) : parameters[0].second.options().requires_grad(false));
  return at::stack(at::_foreach_norm(grads, 2)).norm();
}

double grad_divisor(double norm, double loss_scale, double max_norm) {
  constexpr double kTiny = 1e-6;  // of clip_grad_norm_
  const double excess = max_norm > 0.0 ? (norm + kTiny) / max_norm : 0.0;
  return loss_scale * std::max(excess, 1.0);
}

std::vector<std::string> non_finite_gradients(const NamedTensors& parameters) {
  const at::NoGradGuard no_grad;
  std::vector<std::string> names;
  std::vector<Tensor> finite;
  for (const auto& [name, parameter] : parameters) {
    if (!parameter.grad().defined()) continue;
    names.push_back(name);
    finite.push_back(parameter.grad().isfinite().all());
  }
  if (names.empty()) return {};
  const Tensor on_host = at::stack(finite).cpu();
  std::vector<std::string> bad;
  for (size_t i = 0; i < names.size(); ++i) {
    if (!on_host.data_ptr<bool>()[i]) bad.push_back(names[i]);
  }
  return bad;
}

double learning_rate_factor(config::LearningRateSchedule schedule, int64_t step, int64_t total_steps, double warmup_ratio,
                            double min_ratio) {
  const auto warmup = static_cast<int64_t>(std::ceil(warmup_ratio * static_cast<double>(total_steps)));
  if (step < warmup) return static_cast<double>(step) / static_cast<double>(std::max<int64_t>(warmup, 1));
  const double progress =
      std::min(static_cast<double>(step - warmup) / static_cast<double>(std::max<int64_t>(total_steps - warmup, 1)), 1.0);
  const double factor = schedule == config::LearningRateSchedule::constant ? 1.0
                        : schedule == config::LearningRateSchedule::linear ? 1.0 - progress
                                                                           : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return min_ratio + (1.0 - min_ratio) * std::max(factor, 0.0);
}

void LearningRateBackoff::update(bool is_skipped) {
  scale_ = is_skipped ? scale_ * 0.5 : std::min(1.0, scale_ * std::exp2(1.0 / kRecoverySteps));
}

void LearningRateBackoff::restore(const json& state) {
  scale_ = require<double>(state, "scale", "learning rate backoff state");
}

LossScaler::LossScaler(bool enabled, double initial_scale, int64_t growth_interval)
    : enabled_(enabled), scale_(initial_scale), growth_interval_(growth_interval) {
  if (enabled && !(std::isfinite(initial_scale) && initial_scale > 0.0)) {
    throw ConfigError("optimizer.initial_loss_scale = {}: it must be above 0", initial_scale);
  }
}

double LossScaler::scale() const {
  return enabled_ ? scale_ : 1.0;
}

void LossScaler::update(bool found_inf) {
  if (!enabled_) return;
  if (found_inf) {
    scale_ *= 0.5;
    good_steps_ = 0;
  } else if (++good_steps_ >= growth_interval_) {
    const double grown = scale_ * 2.0;
    if (grown <= static_cast<double>(std::numeric_limits<float>::max())) scale_ = grown;
    good_steps_ = 0;
  }
}

json LossScaler::state() const {
  return {{"scale", scale_}, {"good_steps", good_steps_}};
}

void LossScaler::restore(const json& state) {
  scale_ = require<double>(state, "scale", "loss scaler state");
  good_steps_ = require<int64_t>(state, "good_steps", "loss scaler state");
}

}  // namespace distil_xlstm::optim
