#include "train/recorder.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/text.h"
#include "ops/device.h"

namespace distil_xlstm::train {
namespace {

double norm_of(const NamedTensors& parameters) {
  const at::NoGradGuard no_grad;
  std::vector<Tensor> tensors;
  for (const auto& [name, tensor] : parameters) tensors.push_back(tensor);
  return at::stack(at::_foreach_norm(tensors, 2)).norm().item<double>();
}

}  // namespace

Recorder::Recorder(Parts parts) : in_(std::move(parts)) {
  if (in_.ranks.writes()) metrics_.emplace(in_.run);
}

Recorder::Recorder(Parts parts, const MetricsPosition& position, int64_t step) : in_(std::move(parts)) {
  if (in_.ranks.writes()) metrics_.emplace(in_.run, position, step);
}

void Recorder::check_in_place() const {
  if (metrics_) metrics_->check_in_place();
}

void Recorder::step(const StepResult& r, const RunState& state, double seconds) {
  if (!metrics_) return;
  last_good_ = r;
  interval_tokens_ += r.counts.num_tokens;
  interval_seconds_ += seconds;
  const bool is_last = state.step == in_.length.total_steps;
  if (!is_due(state.step, in_.config.train.log_every_steps) && !is_last) return;
  tokens_per_second_ = static_cast<double>(interval_tokens_) / std::max(interval_seconds_, 1e-9);
  interval_tokens_ = 0;
  interval_seconds_ = 0.0;
  write_step(r, state);
  if (is_last)
    progress_.finish(progress_text(r, state));
  else if (progress_.due())
    progress_.update(progress_text(r, state));
}

void Recorder::write_step(const StepResult& r, const RunState& state) {
  json record = {{"epoch", state.epoch}, {"tokens", state.tokens}, {"loss", r.loss}};
  for (const TermMean& term : r.terms) record[term.name] = term.mean ? json(*term.mean) : json(nullptr);
  record.update(json{{"alpha", r.plan.alpha},
                     {"temperature", r.plan.temperature},
                     {"beta", r.plan.beta},
                     {"stage", r.stage + 1},
                     {"learning_rate", r.learning_rate},
                     {"learning_rate_scale", r.learning_rate_scale},
                     {"grad_norm", r.grad_norm},
                     {"parameter_norm", norm_of(in_.student.parameters())},
                     {"loss_scale", r.loss_scale},
                     {"peak_memory_bytes", ops::peak_memory_bytes(in_.student.device())},
                     {"target_tokens", r.counts.num_targets},
                     {"tokens_per_second", tokens_per_second_},
                     {"seconds", state.seconds}});
  metrics_->write("train", state.step, record);
}

std::string Recorder::progress_text(const StepResult& r, const RunState& state) const {
  const double seconds_left =
      state.seconds / static_cast<double>(std::max<int64_t>(state.step, 1)) * static_cast<double>(in_.length.total_steps - state.step);
  std::string hidden;  // what was measured on hidden states; "alignment_loss" as "align"
  for (size_t i = r.terms.size() - r.plan.hidden_weights.size(); i < r.terms.size(); ++i) {
    const auto& [name, weight, mean] = r.terms[i];
    if (mean) hidden += fmt::format(" {} {:.3f}", name == "alignment_loss" ? "align" : name, *mean);
  }
  std::string heads, weights;
  if (r.is_measured("ce_loss")) {
    heads = fmt::format("  ce {:.3f} kd {:.3f}", r.mean("ce_loss"), r.mean("kd_loss"));
    weights = fmt::format("  alpha {:.3f} T {:.2f}", r.plan.alpha, r.plan.temperature);
  } else if (!hidden.empty()) {
    hidden = " " + hidden;
  }
  return fmt::format("step {}/{}  loss {:.3f}{}{}{}  lr {:.2e}  grad {:.2f}  {} tokens/s  {} left", state.step, in_.length.total_steps,
                     r.loss, heads, hidden, weights, r.learning_rate, r.grad_norm, format_count(tokens_per_second_),
                     format_duration(seconds_left));
}

void Recorder::skipped(const StepResult& r, const RunState& state, const std::string& message) {
  if (!metrics_) return;
  spdlog::warn(message);
  metrics_->write("skipped", state.step,
                  {{"in_a_row", state.skipped_in_a_row},
                   {"loss", r.loss},
                   {"grad_norm", r.grad_norm},
                   {"loss_scale", r.loss_scale},
                   {"learning_rate_scale", r.learning_rate_scale},
                   {"parameters", r.bad_parameters}});
}

void Recorder::validation(const eval::ValidationResult& result, const RunState& state) {
  if (!metrics_) return;
  if (!result.student_problem.empty()) spdlog::warn("step {}: validation: {}", state.step, result.student_problem);
  metrics_->write("validation", state.step, result.to_json());
  spdlog::info("step {}: validation perplexity {:.3f}, teacher {:.3f} (ratio {:.3f}), agreement {:.1f} %, KL {:.3f}, {} tokens", state.step,
               std::exp(result.ce_loss), std::exp(result.teacher_nll), std::exp(result.ce_loss - result.teacher_nll),
               100.0 * result.agreement, result.mean_kl, format_count(static_cast<double>(result.target_tokens)));
}

void Recorder::end_progress_line(const RunState& state) {
  if (last_good_) progress_.finish(progress_text(*last_good_, state));
}

void Recorder::checkpoint(const RunState& state, CheckpointContent content) {
  if (!metrics_) return;
  metrics_->check_in_place();
  content.trainer["metrics"] = metrics_->position().to_json();
  const auto checkpoint = write_checkpoint(in_.run, state.step, content);
  if (state.best && state.best_step == state.step) point_to(in_.run, "best", checkpoint);
  prune_checkpoints(in_.run, in_.config.train.keep_checkpoints);
}

}  // namespace distil_xlstm::train
