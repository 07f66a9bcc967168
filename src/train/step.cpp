#include "train/step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "nn/finite.h"

namespace distil_xlstm::train {
namespace {

double weighted_sum(const std::vector<TermMean>& terms) {
  double loss = 0.0;
  for (const TermMean& term : terms) {
    if (term.weight != 0.0 && term.mean) loss += term.weight * *term.mean;
  }
  return loss;
}

double at_least_one(int64_t count) {
  return static_cast<double>(std::max<int64_t>(count, 1));
}

// Throws ConfigError for a group that no parameter is of.
void check_groups(const distill::Stage& stage, const std::vector<student::ParameterTraits>& traits) {
  std::set<std::string> groups;
  for (const auto& parameter : traits) groups.insert(parameter.group);
  for (const auto& [group, rate] : stage.rates) {
    if (groups.contains(group)) continue;
    throw ConfigError("{}: trains the parameter group '{}', the student has {}", stage.name, group,
                      join({groups.begin(), groups.end()}, ", "));
  }
}

}  // namespace

bool StepResult::is_measured(std::string_view name) const {
  return std::ranges::any_of(terms, [&](const TermMean& term) { return term.name == name && term.mean.has_value(); });
}

double StepResult::mean(std::string_view name) const {
  for (const TermMean& term : terms) {
    if (term.name == name) return term.mean.value_or(std::numeric_limits<double>::quiet_NaN());
  }
  throw ValueError("the loss has no term '{}'", name);
}

TrainingStep::TrainingStep(const StepParts& parts)
    : in_(parts),
      micro_batches_(in_.teacher, in_.student, in_.objective, in_.head_rows),
      scaler_(in_.compute_dtype == at::kHalf, in_.config.optimizer.initial_loss_scale) {
  const auto stages = in_.method.stages();
  for (const auto& stage : stages) check_stage(stage);  // before the first is trained
  begin_stage(stages.front());
}

void TrainingStep::check_stage(const distill::Stage& stage) const {
  if (stage.aligns_layers && !in_.student.shape().keeps_teacher_layers()) {
    throw ConfigError(
        "{}: compares each layer of the student with its teacher's, which student.kind = \"{}\" does not keep: \"convert\" does",
        stage.name, in_.student.shape().kind());
  }
  check_groups(stage, in_.student.parameter_traits());
  if (!stage.takes_teacher_inputs) return;
  if (const int64_t layers = in_.teacher.shape().num_layers, blocks = in_.student.shape().num_layers(); layers != blocks) {
    throw ConfigError("{}: gives each layer of the student the teacher's state, but the teacher has {} layers and the student {}",
                      stage.name, layers, blocks);
  }
}

void TrainingStep::begin_stage(const distill::Stage& stage) {
  const auto traits = in_.student.parameter_traits();
  check_stage(stage);
  stage_ = stage;
  trained_.clear();
  std::vector<optim::ParameterRule> rules;
  for (size_t i = 0; i < traits.size(); ++i) {
    const auto& parameter = in_.student.parameters()[i];
    const auto rate = stage.rates.find(traits[i].group);
    const bool is_trained = stage.rates.empty() || rate != stage.rates.end();
    Tensor(parameter.second).set_requires_grad(is_trained);
    if (!is_trained) continue;
    trained_.push_back(parameter);
    rules.push_back({.decays = traits[i].decays, .rate = stage.rates.empty() ? 1.0 : rate->second});
  }
  micro_batches_.forget_replicas();
  const auto& settings = in_.config.optimizer;
  optimizer_ = std::make_unique<optim::AdamW>(
      trained_, optim::AdamWSettings{settings.betas[0], settings.betas[1], settings.eps, settings.weight_decay}, rules);
}

// Letters: B rows, S tokens, D width. Losses are sums over micro-batches; what divides them belongs to the whole step: its unmasked
// targets for the losses over the heads, its rows for hidden terms.
StepResult TrainingStep::run(const std::vector<data::Batch>& batches, const distill::StepContext& context, const data::Batch* next) {
  StepResult r = begin(batches, context);
  const auto after = next_batch(next, context);
  // Teacher, student, losses, backward: micro-batch by micro-batch.
  LossSums sums = micro_batches_.run(batches, gradient_settings(r, context), after ? &*after : nullptr);
  sum_over_ranks(in_.ranks, trained_, sums);

  r.grad_norm = optim::grad_norm(trained_).item<double>() / r.loss_scale;
  if (!std::isfinite(r.grad_norm)) r.bad_parameters = optim::non_finite_gradients(trained_);
  read_means(r, sums);
  r.loss = weighted_sum(r.terms);
  r.is_skipped = !std::isfinite(r.grad_norm) || !std::isfinite(r.loss);
  if (r.is_skipped) find_problem(r, batches);
  update(r);
  return r;
}

StepResult TrainingStep::begin(const std::vector<data::Batch>& batches, const distill::StepContext& context) const {
  StepResult r;
  r.plan = in_.method.plan(context);
  r.stage = context.stage;
  r.counts = count_step(in_.ranks, batches);
  const auto& optimizer = in_.config.optimizer;
  r.learning_rate_scale = backoff_.scale();
  const double peak = stage_.learning_rate > 0.0 ? stage_.learning_rate : optimizer.learning_rate;
  const int64_t end = stage_.end_step > 0 ? stage_.end_step : context.total_steps;
  r.learning_rate = r.learning_rate_scale * peak *
                    optim::learning_rate_factor(optimizer.schedule, context.step - stage_.begin_step, end - stage_.begin_step,
                                                optimizer.warmup_ratio, optimizer.min_learning_rate_ratio);
  r.loss_scale = scaler_.scale();
  return r;
}

GradientSettings TrainingStep::gradient_settings(const StepResult& r, const distill::StepContext& context) const {
  GradientSettings settings;
  settings.head = r.plan.head;
  settings.added_head_terms = in_.objective.added_head_terms(r.plan);
  settings.target_scale = r.loss_scale / at_least_one(r.counts.num_targets);
  settings.measured = in_.objective.measured(r.plan, context.step);
  for (const double weight : r.plan.hidden_weights)
    settings.hidden_scales.push_back(r.loss_scale * weight / at_least_one(r.counts.num_rows));
  settings.takes_teacher_inputs = stage_.takes_teacher_inputs;
  settings.aligns_layers = stage_.aligns_layers;
  settings.rows_before = stage_.rows_before;
  settings.student.compute_dtype = in_.compute_dtype;
  settings.student.collect_layers = in_.objective.needs_layers(settings.measured);
  settings.student.activation_checkpointing = in_.config.train.checkpointing == config::Checkpointing::blocks;
  return settings;
}

std::optional<NextBatch> TrainingStep::next_batch(const data::Batch* next, distill::StepContext context) const {
  if (next == nullptr) return std::nullopt;
  ++context.step;
  const auto after = distill::in_its_stage(in_.method, context);
  return NextBatch{next, in_.objective.measured(in_.method.plan(after), after.step), in_.method.stages()[after.stage].takes_teacher_inputs};
}

void TrainingStep::read_means(StepResult& r, const LossSums& sums) const {
  const auto names = in_.objective.names();
  const auto weights = in_.objective.weights(r.plan);
  const bool has_heads = sums.head.defined();
  const Tensor host = has_heads ? sums.head.to(at::kCPU) : Tensor();
  const size_t num_head = names.size() - sums.hidden.size();
  for (size_t i = 0; i < names.size(); ++i) {
    TermMean term{.name = names[i], .weight = weights[i], .mean = std::nullopt};
    if (i < num_head) {
      if (has_heads) term.mean = host.const_data_ptr<double>()[i] / at_least_one(r.counts.num_targets);
    } else if (const Tensor& sum = sums.hidden[i - num_head]; sum.defined()) {
      term.mean = sum.item<double>() / at_least_one(r.counts.num_rows);
    }
    r.terms.push_back(std::move(term));
  }
}

// A skipped step's: the teacher's where its figures are not finite, else the student's where its loss is not.
void TrainingStep::find_problem(StepResult& r, const std::vector<data::Batch>& batches) const {
  const auto is_bad = [&](std::string_view name) { return r.is_measured(name) && !std::isfinite(r.mean(name)); };
  const auto look_at = [&](nn::LanguageModel& model) {
    nn::NonFinite found;
    for (const auto& batch : batches) {
      const auto on_device = nn::to_device(batch, in_.student.device());
      found = nn::find_non_finite(model, on_device.tokens_BS, on_device.is_start_BS);
      if (!found.part.empty()) break;
    }
    return found;
  };
  // Where layers are aligned no head says whose figures they are.
  const bool may_be_teachers = stage_.aligns_layers ? !std::isfinite(r.loss) : is_bad("teacher_nll");
  if (may_be_teachers) {
    auto* model = in_.teacher.model();
    const auto found = model != nullptr ? look_at(*model) : nn::NonFinite{};
    r.is_teachers_problem = !stage_.aligns_layers || !found.part.empty();
    if (r.is_teachers_problem) {
      r.model_problem = model == nullptr ? "the teacher's signals are not finite"
                                         : nn::description(found, in_.config.teacher.model) + ": " + nn::remedy(found, "teacher.precision");
      return;
    }
  }
  // The parameters tell the layer then; the student as a whole did not run.
  if (stage_.aligns_layers && !r.bad_parameters.empty()) return;
  if (is_bad("ce_loss") || may_be_teachers) r.model_problem = nn::description(look_at(in_.student), "the student");
}

// Clips and applies the gradients, unless the step is skipped, and moves the scales.
void TrainingStep::update(const StepResult& r) {
  if (!r.is_teachers_problem) {
    scaler_.update(r.is_skipped);
    if (in_.compute_dtype != at::kHalf) backoff_.update(r.is_skipped);  // in float16 an overflow is a matter of the loss scale
  }
  if (!r.is_skipped) optimizer_->step(r.learning_rate, optim::grad_divisor(r.grad_norm, r.loss_scale, in_.config.optimizer.max_grad_norm));
  optimizer_->zero_grad();
}

}  // namespace distil_xlstm::train
