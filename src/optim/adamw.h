// AdamW over float32 master weights by ATen's fused op, gradient clipping, learning-rate schedules, loss scaling.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "config/choices.h"
#include "ops/tensor.h"

namespace distil_xlstm::optim {

struct AdamWSettings {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
};

// Of one parameter.
struct ParameterRule {
  bool decays = false;  // whether weight decay applies
  double rate = 1.0;    // factor of the learning rate
};

class AdamW {
 public:
  // rules[i] is that of parameters[i]. Parameters must be float32 leaves.
  AdamW(const NamedTensors& parameters, const AdamWSettings& settings, const std::vector<ParameterRule>& rules);
  // Divides each .grad by `divisor` in the same pass (it is written back unless that is 1); parameters without one are left alone.
  void step(double learning_rate, double divisor = 1.0);
  void zero_grad();
  [[nodiscard]] NamedTensors state_tensors() const;  // "exp_avg.NAME", "exp_avg_sq.NAME"
  [[nodiscard]] int64_t steps() const;
  void restore(const std::function<Tensor(const std::string&)>& tensor, int64_t steps);

 private:
  struct Group {
    std::vector<Tensor> parameters, exp_avg, exp_avg_sq;
    double weight_decay = 0.0, rate = 1.0;
  };
  Group& group_of(const ParameterRule& rule);

  std::vector<Group> groups_;  // of equal rules: each is updated in one pass
  NamedTensors state_;
  AdamWSettings settings_;
  int64_t steps_ = 0;
};

// L2 norm over all gradients (float32 sums) as a device scalar; 0 without any. Not finite if one of their values is not, or above 1e19.
Tensor grad_norm(const NamedTensors& parameters);

// What gradients that hold `loss_scale` are divided by (AdamW::step) to be without it and, by torch.nn.utils.clip_grad_norm_'s formula,
// of a norm of at most max_norm (0: any). `norm` is theirs without the scale, finite.
double grad_divisor(double norm, double loss_scale, double max_norm);

// Names of the parameters whose gradient holds a non-finite value, for messages.
std::vector<std::string> non_finite_gradients(const NamedTensors& parameters);

// Factor of the base learning rate at 0-based step: linear warm-up from 0 over ceil(warmup_ratio * total_steps), then the schedule
// to min_ratio at total_steps, as transformers has it.
double learning_rate_factor(config::LearningRateSchedule schedule, int64_t step, int64_t total_steps, double warmup_ratio,
                            double min_ratio);

// Factor of the learning rate after skipped steps in float32 and bfloat16, which have no loss scale to lower: half for each skipped step,
// back to 1 over kRecoverySteps good ones a halving.
class LearningRateBackoff {
 public:
  static constexpr int kRecoverySteps = 16;
  [[nodiscard]] double scale() const { return scale_; }
  void update(bool is_skipped);
  [[nodiscard]] json state() const { return {{"scale", scale_}}; }
  void restore(const json& state);

 private:
  double scale_ = 1.0;
};

// Dynamic loss scale for float16, as torch.amp.GradScaler: halves on overflow, doubles after growth_interval good steps in a row.
class LossScaler {
 public:
  LossScaler(bool enabled, double initial_scale, int64_t growth_interval = 2000);
  [[nodiscard]] double scale() const;  // 1 when disabled
  void update(bool found_inf);
  [[nodiscard]] json state() const;
  void restore(const json& state);

 private:
  bool enabled_;
  double scale_;
  int64_t growth_interval_;
  int64_t good_steps_ = 0;
};

}  // namespace distil_xlstm::optim
