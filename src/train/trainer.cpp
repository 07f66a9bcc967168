#include "train/trainer.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/text.h"
#include "nn/finite.h"
#include "ops/device.h"
#include "student/registry.h"
#include "train/checkpoint.h"

namespace distil_xlstm::train {
namespace {

bool is_due(int64_t step, int64_t every) {
  return every > 0 && step % every == 0;
}

// Pieces of a step's sums that the loss is made of.
double weighted_loss(const StepResult& r) {
  const auto& head = r.plan.head;
  double loss = 0.0;
  const auto add = [&loss](double weight, double value) {
    if (weight != 0.0) loss += weight * value;
  };
  add(head.ce_weight, r.ce_loss);
  add(head.kd_weight, r.kd_loss);
  add(head.mse_weight, r.mse_loss);
  add(head.label_weight, r.mixed_ce);
  if (r.alignment_loss) add(r.plan.alignment_weight, *r.alignment_loss);
  return loss;
}

void read_sums(StepResult& r, const double* sums) {
  const auto count = static_cast<double>(std::max<int64_t>(r.num_targets, 1));
  r.ce_loss = sums[ops::kCe] / count;
  r.kd_loss = sums[ops::kKd] / count;
  r.kl_at_1 = sums[ops::kKlAt1] / count;
  r.teacher_nll = sums[ops::kTeacherNll] / count;
  r.agreement = sums[ops::kAgreement] / count;
  r.mse_loss = sums[ops::kMse] / count;
  r.mixed_ce = sums[ops::kMixedCe] / count;
}

std::string shortened(const std::vector<std::string>& names) {
  constexpr size_t kShown = 3;
  std::vector<std::string> shown(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(std::min(names.size(), kShown)));
  return join(shown, ", ") + (names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "");
}

double norm_of(const NamedTensors& parameters) {
  const at::NoGradGuard no_grad;
  std::vector<Tensor> tensors;
  for (const auto& [name, tensor] : parameters) tensors.push_back(tensor);
  return at::stack(at::_foreach_norm(tensors, 2)).norm().item<double>();
}

json optional_json(const std::optional<eval::ValidationResult>& result) {
  return result ? result->to_json() : json(nullptr);
}

// The first row of a micro-batch, as a micro-batch.
data::Batch first_row(const data::Batch& batch) {
  data::Batch row;
  row.num_rows = 1;
  row.context_length = batch.context_length;
  row.tokens.assign(batch.tokens.begin(), batch.tokens.begin() + batch.context_length);
  row.targets.assign(batch.targets.begin(), batch.targets.begin() + batch.context_length);
  row.mask.assign(batch.mask.begin(), batch.mask.begin() + batch.context_length);
  row.is_start.assign(batch.is_start.begin(), batch.is_start.begin() + batch.context_length);
  return row;
}

std::optional<eval::ValidationResult> optional_result(const json& trainer, const char* key, const std::string& where) {
  const auto it = trainer.find(key);
  if (it == trainer.end() || it->is_null()) return std::nullopt;
  return eval::ValidationResult::from_json(*it, where);
}

}  // namespace

Trainer::Trainer(const TrainerInputs& inputs)
    : in_(inputs),
      length_(run_length(in_.config.train, in_.train.rows_per_epoch(), in_.train.context_length())),
      method_(distill::make_method(in_.config.distill, length_.total_steps, length_.num_epochs, length_.steps_per_epoch)),
      alignment_(in_.config.distill.alignment, in_.teacher.num_layers(), in_.student.shape().num_layers()),
      micro_batches_(in_.teacher, in_.student, alignment_, in_.head_rows),
      scaler_(in_.compute_dtype == at::kHalf, in_.config.optimizer.initial_loss_scale) {
  make_optimizer();
  in_.student.set_compute_dtype(in_.compute_dtype);
  if (in_.resume_from.empty()) {
    in_.train.begin_epoch(0);
    metrics_ = std::make_unique<MetricsLog>(in_.run);
  } else {
    restore(in_.resume_from);
  }
}

void Trainer::make_optimizer() {
  const auto& settings = in_.config.optimizer;
  optimizer_ = std::make_unique<optim::AdamW>(
      in_.student.parameters(), optim::AdamWSettings{settings.betas[0], settings.betas[1], settings.eps, settings.weight_decay},
      student::decays_of(in_.student));
}

distill::StepContext Trainer::context() const {
  return {.step = step_, .total_steps = length_.total_steps, .epoch = epoch_, .num_epochs = length_.num_epochs};
}

TrainStatus Trainer::run() {
  const SignalGuard guard;
  const ops::PriorityStream stream(in_.student.device());  // the teacher, a micro-batch ahead, fills what the student leaves
  try {
    return train_and_save();
  } catch (const IoError& error) {
    metrics_->check_in_place();  // says so, if that is why
    throw IoError("{}{}", error.what(), what_is_kept());
  } catch (const fs::filesystem_error& error) {
    metrics_->check_in_place();
    throw IoError("{}{}", error.what(), what_is_kept());
  }
}

TrainStatus Trainer::train_and_save() {
  try {
    train();
  } catch (const Interrupted&) {  // between two steps, or in a validation, which the resumed run makes up for
    if (last_good_) progress_.finish(progress_text(*last_good_));
    if (!is_saved_) save();
    return TrainStatus::stopped;
  }
  const bool is_finished = step_ >= length_.total_steps || has_no_more_data_;
  if (last_good_ && !is_finished) progress_.finish(progress_text(*last_good_));
  if (!is_saved_) save();
  if (is_finished && !is_saved_) {
    throw Error(fmt::format("step {}: the run's last weights give no finite loss and were not saved. {}", step_, how_to_go_on()));
  }
  return is_finished ? TrainStatus::finished : TrainStatus::stopped;
}

// What is left after a write that failed, such as on a full disk.
std::string Trainer::what_is_kept() const {
  const auto last = follow_pointer(in_.run, "last");
  if (!last) return ". No checkpoint was made yet";
  return fmt::format(". The last checkpoint, {}, is whole: when the cause is gone, go on with: distil-xlstm distill --resume --output {}",
                     last->string(), in_.run.string());
}

void Trainer::train() {
  catch_up();
  while (step_ < length_.total_steps) {
    if (stage_ == 1 && method_->plan(context()).stage == 2) start_stage_two();
    const double began = monotonic_seconds();
    const auto batches = take_batches();
    if (batches.empty()) {
      if (length_.ends_with_epochs && epoch_ + 1 >= length_.num_epochs) {
        // The data ended before total_steps, since steps were skipped.
        has_no_more_data_ = true;
        if (in_.validation != nullptr && validated_step_ != step_) validate();
        return;
      }
      end_epoch();
      continue;
    }
    const auto result = train_step(batches);
    const double seconds = monotonic_seconds() - began;
    tokens_ += result.num_tokens;
    seconds_ += seconds;
    is_saved_ = false;
    if (result.is_skipped)
      on_skipped_step(result);
    else
      on_good_step(result, seconds);
    const bool is_told_to_stop = in_.stop_after_steps > 0 && ++process_steps_ >= in_.stop_after_steps;
    if (received_signal() != 0 || is_told_to_stop) return;
  }
}

// The validation that belongs to this step, where a signal kept the process before this one from it.
void Trainer::catch_up() {
  if (in_.validation == nullptr || validated_step_ == step_) return;
  if (step_ != 0 && step_ != length_.total_steps && !is_due(step_, in_.config.eval.every_steps)) return;
  validate();
  if (best_step_ == step_ && best_) save();
}

// Of this step. Those of the next are read too, where there is one in this epoch: on a GPU its first teacher runs beside this step's last
// student.
std::vector<data::Batch> Trainer::take_batches() {
  auto batches = next_batches_.empty() ? read_batches() : std::exchange(next_batches_, {});
  if (batches.empty() || step_ + 1 >= length_.total_steps) return batches;
  place_before_next_ = in_.train.state();
  next_batches_ = read_batches();
  return batches;
}

std::vector<data::Batch> Trainer::read_batches() {
  std::vector<data::Batch> batches;
  data::Batch batch;
  while (static_cast<int64_t>(batches.size()) < in_.config.train.gradient_accumulation_steps && in_.train.next(batch))
    batches.push_back(batch);
  return batches;
}

void Trainer::end_epoch() {
  method_->end_epoch(step_);
  in_.train.begin_epoch(++epoch_);
  is_saved_ = false;
}

// Letters: B rows, S tokens, D width. Losses are sums over micro-batches; what divides them belongs to the whole step: its unmasked
// targets for the losses over the heads, its rows for L_F.
StepResult Trainer::train_step(const std::vector<data::Batch>& batches) {
  StepResult r;
  r.plan = method_->plan(context());
  for (const auto& batch : batches) {
    r.num_targets += batch.num_targets;
    r.num_rows += batch.num_rows;
    r.num_tokens += batch.num_rows * batch.context_length;
  }
  const auto& optimizer = in_.config.optimizer;
  r.learning_rate_scale = backoff_.scale();
  r.learning_rate = r.learning_rate_scale * optimizer.learning_rate *
                    optim::learning_rate_factor(optimizer.schedule, step_, length_.total_steps, optimizer.warmup_ratio,
                                                optimizer.min_learning_rate_ratio);
  r.loss_scale = scaler_.scale();
  GradientSettings settings;
  settings.plan = r.plan;
  settings.target_scale = r.loss_scale / static_cast<double>(std::max<int64_t>(r.num_targets, 1));
  settings.row_scale = r.loss_scale * r.plan.alignment_weight / static_cast<double>(std::max<int64_t>(r.num_rows, 1));
  settings.measures_alignment = measures_alignment(r.plan, step_);
  settings.student.compute_dtype = in_.compute_dtype;
  settings.student.collect_layers = settings.measures_alignment && alignment_.needs_blocks();
  settings.student.activation_checkpointing = in_.config.train.checkpointing == config::Checkpointing::blocks;
  std::optional<NextBatch> next;
  if (!next_batches_.empty()) {
    auto after = context();
    ++after.step;
    next = NextBatch{&next_batches_.front(), measures_alignment(method_->plan(after), after.step)};
  }
  const LossSums sums = micro_batches_.run(batches, settings, next ? &*next : nullptr);

  const auto& parameters = in_.student.parameters();
  r.grad_norm = optim::grad_norm(parameters).item<double>() / r.loss_scale;
  bad_parameters_ = std::isfinite(r.grad_norm) ? std::vector<std::string>{} : optim::non_finite_gradients(parameters);
  const auto host_sums = sums.head.to(at::kCPU);
  read_sums(r, host_sums.const_data_ptr<double>());
  if (sums.alignment.defined()) r.alignment_loss = sums.alignment.item<double>() / static_cast<double>(r.num_rows);
  r.loss = weighted_loss(r);

  r.is_skipped = !std::isfinite(r.grad_norm) || !std::isfinite(r.loss);
  if (r.is_skipped) find_problem(r, batches);
  if (!r.is_teachers_problem) {
    scaler_.update(r.is_skipped);
    if (in_.compute_dtype != at::kHalf) backoff_.update(r.is_skipped);  // in float16 an overflow is a matter of the loss scale
  }
  probe_ = first_row(batches.front());
  if (!r.is_skipped) {
    optimizer_->step(r.learning_rate, optim::grad_divisor(r.grad_norm, r.loss_scale, optimizer.max_grad_norm));
    ++step_;
  }
  optimizer_->zero_grad();
  return r;
}

// A skipped step's: the teacher's where its figures are not finite, else the student's where its loss is not.
void Trainer::find_problem(StepResult& result, const std::vector<data::Batch>& batches) {
  result.is_teachers_problem = !std::isfinite(result.teacher_nll);
  if (!result.is_teachers_problem && std::isfinite(result.ce_loss)) return;
  nn::LanguageModel& model = result.is_teachers_problem ? static_cast<nn::LanguageModel&>(in_.teacher) : in_.student;
  nn::NonFinite found;
  for (const auto& batch : batches) {
    const auto on_device = eval::to_device(batch, in_.student.device());
    found = nn::find_non_finite(model, on_device.tokens_BS, on_device.is_start_BS);
    if (!found.part.empty()) break;
  }
  result.model_problem = nn::description(found, result.is_teachers_problem ? in_.config.teacher.model : "the student");
  if (result.is_teachers_problem) result.model_problem += ": " + nn::remedy(found, "teacher.precision");
}

bool Trainer::measures_alignment(const distill::StepPlan& plan, int64_t step) const {
  return plan.alignment_weight != 0.0 || is_due(step, in_.config.distill.alignment.every_steps);
}

void Trainer::on_good_step(const StepResult& result, double seconds) {
  num_skipped_ = 0;
  last_good_ = result;
  log_step(result, seconds);
  const bool is_last = step_ == length_.total_steps;
  const bool validates = in_.validation != nullptr && (is_last || is_due(step_, in_.config.eval.every_steps));
  if (validates) validate();
  const bool saves = is_last || is_due(step_, in_.config.train.save_every_steps) || (validates && best_step_ == step_);
  if (saves) save();
}

void Trainer::on_skipped_step(const StepResult& result) {
  ++num_skipped_;
  const std::string what = !result.model_problem.empty()  ? result.model_problem
                           : !bad_parameters_.empty()     ? "gradient is not finite in " + shortened(bad_parameters_)
                           : std::isinf(result.grad_norm) ? fmt::format("the gradient's norm overflows at loss_scale {}", result.loss_scale)
                                                          : fmt::format("loss is {} (ce {:.4g}, kd {:.4g}), grad_norm {}", result.loss,
                                                                        result.ce_loss, result.kd_loss, result.grad_norm);
  std::string scale;
  if (scaler_.scale() != result.loss_scale) scale = fmt::format(", loss_scale {} -> {}", result.loss_scale, scaler_.scale());
  if (backoff_.scale() != result.learning_rate_scale)
    scale = fmt::format(", learning_rate_scale {:.3g} -> {:.3g}", result.learning_rate_scale, backoff_.scale());
  const auto limit = in_.config.train.max_skipped_steps;
  const auto message = fmt::format("step {}: {}; skipped{} ({} in a row, stops at {})", step_, what, scale, num_skipped_, limit);
  spdlog::warn(message);
  metrics_->write("skipped", step_,
                  {{"in_a_row", num_skipped_},
                   {"loss", result.loss},
                   {"grad_norm", result.grad_norm},
                   {"loss_scale", result.loss_scale},
                   {"learning_rate_scale", result.learning_rate_scale},
                   {"parameters", bad_parameters_}});
  // What the teacher cannot do with the first rows it will not do with others.
  if (result.is_teachers_problem && step_ == 0) throw Error(fmt::format("step 0: {}", result.model_problem));
  if (num_skipped_ < limit) return;
  throw Error(fmt::format("{}: {} steps in a row could not be taken. {}", message, num_skipped_, how_to_go_on(result.is_teachers_problem)));
}

// After a failure: what there is, and the settings that may then be others.
std::string Trainer::how_to_go_on(bool is_teachers_problem) const {
  std::string advice = "Lower optimizer.learning_rate";
  if (in_.compute_dtype == at::kHalf) advice += ", or set train.precision to bf16 or fp32";
  if (in_.compute_dtype == at::kBFloat16) advice += ", or set train.precision to fp32";
  std::string option = fmt::format("--learning-rate {:g}", in_.config.optimizer.learning_rate / 4);
  if (is_teachers_problem) {
    advice = "The teacher needs another precision";
    option = "--teacher-precision fp32";
  }
  const auto last = follow_pointer(in_.run, "last");
  if (!last) return fmt::format("No checkpoint was made yet. {}: distil-xlstm distill ... {} --overwrite", advice, option);
  return fmt::format("The last checkpoint, {}, is intact. {}: distil-xlstm distill --resume --output {} {}", last->string(), advice,
                     in_.run.string(), option);
}

void Trainer::log_step(const StepResult& r, double seconds) {
  interval_tokens_ += r.num_tokens;
  interval_seconds_ += seconds;
  if (!is_due(step_, in_.config.train.log_every_steps) && step_ != length_.total_steps) return;
  tokens_per_second_ = static_cast<double>(interval_tokens_) / std::max(interval_seconds_, 1e-9);
  interval_tokens_ = 0;
  interval_seconds_ = 0.0;
  metrics_->write("train", step_,
                  {{"epoch", epoch_},
                   {"tokens", tokens_},
                   {"loss", r.loss},
                   {"ce_loss", r.ce_loss},
                   {"kd_loss", r.kd_loss},
                   {"kl_at_1", r.kl_at_1},
                   {"teacher_nll", r.teacher_nll},
                   {"agreement", r.agreement},
                   {"mse_loss", r.mse_loss},
                   {"mixed_ce", r.mixed_ce},
                   {"alignment_loss", r.alignment_loss ? json(*r.alignment_loss) : json(nullptr)},
                   {"alpha", r.plan.alpha},
                   {"temperature", r.plan.temperature},
                   {"beta", r.plan.beta},
                   {"stage", r.plan.stage},
                   {"learning_rate", r.learning_rate},
                   {"learning_rate_scale", r.learning_rate_scale},
                   {"grad_norm", r.grad_norm},
                   {"parameter_norm", norm_of(in_.student.parameters())},
                   {"loss_scale", r.loss_scale},
                   {"peak_memory_bytes", ops::peak_memory_bytes(in_.student.device())},
                   {"target_tokens", r.num_targets},
                   {"tokens_per_second", tokens_per_second_},
                   {"seconds", seconds_}});
  if (step_ == length_.total_steps)
    progress_.finish(progress_text(r));
  else if (progress_.due())
    progress_.update(progress_text(r));
}

std::string Trainer::progress_text(const StepResult& r) const {
  const double seconds_left =
      seconds_ / static_cast<double>(std::max<int64_t>(step_, 1)) * static_cast<double>(length_.total_steps - step_);
  const std::string alignment = r.alignment_loss ? fmt::format(" align {:.3f}", *r.alignment_loss) : "";
  return fmt::format("step {}/{}  loss {:.3f}  ce {:.3f} kd {:.3f}{}  alpha {:.3f} T {:.2f}  lr {:.2e}  grad {:.2f}  {} tokens/s  {} left",
                     step_, length_.total_steps, r.loss, r.ce_loss, r.kd_loss, alignment, r.plan.alpha, r.plan.temperature, r.learning_rate,
                     r.grad_norm, format_count(tokens_per_second_), format_duration(seconds_left));
}

void Trainer::validate() {
  const auto result =
      eval::validate(in_.student, in_.teacher, *in_.validation,
                     {.max_tokens = in_.config.eval.max_tokens, .head_rows = in_.head_rows, .teacher_name = in_.config.teacher.model});
  if (!result.teacher_problem.empty()) throw Error(fmt::format("step {}: validation: {}", step_, result.teacher_problem));
  if (!result.student_problem.empty()) spdlog::warn("step {}: validation: {}", step_, result.student_problem);
  metrics_->write("validation", step_, result.to_json());
  spdlog::info("step {}: validation perplexity {:.3f}, teacher {:.3f} (ratio {:.3f}), agreement {:.1f} %, KL {:.3f}, {} tokens", step_,
               std::exp(result.ce_loss), std::exp(result.teacher_nll), std::exp(result.ce_loss - result.teacher_nll),
               100.0 * result.agreement, result.mean_kl, format_count(static_cast<double>(result.target_tokens)));
  last_ = result;
  validated_step_ = step_;
  is_saved_ = false;
  if (step_ == 0) {
    initial_ = result;
  } else if (std::isfinite(result.ce_loss) && (!best_ || result.ce_loss < best_->ce_loss)) {
    best_ = result;
    best_step_ = step_;
  }
}

// annealing-kd: stage II starts from the best checkpoint of stage I, with fresh moments. The last weights of stage I may be the best.
void Trainer::start_stage_two() {
  if (in_.validation != nullptr && step_ > 0) {
    if (validated_step_ != step_) validate();
    if (!is_saved_) save();
  }
  stage_ = 2;
  is_saved_ = false;
  make_optimizer();
  spdlog::info("step {}: stage II begins from {}", step_,
               best_ ? fmt::format("the weights of step {}", best_step_) : "the weights as they are: no validation chose better ones");
  if (!best_ || best_step_ == step_) return;
  const auto best = checkpoint_at(in_.run, best_step_);
  if (!best) {
    throw DataError("{}: there is no checkpoint of step {}, the best of stage I, from which stage II begins: put it back",
                    (in_.run / "checkpoints").string(), best_step_);
  }
  const at::NoGradGuard no_grad;
  const auto chosen = student::load_student(
      io::open_model(best->string()),
      {.device = in_.student.device(), .embedding_VD = in_.student.embedding_weight(), .head_VD = in_.student.head_weight()});
  const auto& from = chosen->parameters();
  const auto& to = in_.student.parameters();
  for (size_t i = 0; i < to.size(); ++i) Tensor(to[i].second).copy_(from[i].second);
}

// Whether the weights are worth keeping: they are finite, and so is the loss that they give on a row of the last step. (Adam may make
// weights of 1e30, which are finite and useless.)
bool Trainer::is_sound() {
  const at::NoGradGuard no_grad;
  std::vector<Tensor> finite;
  for (const auto& [name, tensor] : in_.student.parameters()) finite.push_back(tensor.isfinite().all());
  if (!at::stack(finite).all().item<bool>()) return false;
  if (probe_.num_rows == 0) return true;  // no step was taken since they were loaded or drawn
  const auto batch = eval::to_device(probe_, in_.student.device());
  const auto hidden_BSD = in_.student.forward_hidden(batch.tokens_BS, batch.is_start_BS);
  if (!hidden_BSD.isfinite().all().item<bool>()) return false;
  ops::HeadLossOptions options;
  options.with_gradient = false;
  const auto losses =
      ops::head_losses(hidden_BSD, in_.student.head_weight(), Tensor(), Tensor(), batch.targets_BS, batch.mask_BS, options, 1.0);
  return std::isfinite(losses.sums[ops::kCe].item<double>());
}

// What a failed run may be resumed with otherwise than before.
json Trainer::numerics() const {
  return {{"learning_rate", in_.config.optimizer.learning_rate},
          {"precision", in_.config.train.precision},
          {"initial_loss_scale", in_.config.optimizer.initial_loss_scale}};
}

void Trainer::save() {
  if (!is_sound()) {
    const auto last = follow_pointer(in_.run, "last");
    spdlog::warn("step {}: the weights give no finite loss and are not saved{}", step_,
                 last ? "; the last checkpoint stays " + last->filename().string() : "");
    return;
  }
  metrics_->check_in_place();
  const auto layout = config::name_of(in_.config.student.slstm_layout);
  CheckpointContent content;
  content.student_config = in_.student.shape().to_json(layout);
  content.model = in_.student.stored_tensors(layout, /*with_frozen=*/false);
  content.optimizer = optimizer_->state_tensors();
  content.trainer = {{"step", step_},
                     {"epoch", epoch_},
                     {"tokens", tokens_},
                     {"skipped_in_a_row", num_skipped_},
                     {"stage", stage_},
                     {"seconds", seconds_},
                     {"total_steps", length_.total_steps},
                     {"optimizer_steps", optimizer_->steps()},
                     {"loader", next_batches_.empty() ? in_.train.state() : place_before_next_},
                     {"method", method_->state()},
                     {"loss_scaler", scaler_.state()},
                     {"learning_rate_backoff", backoff_.state()},
                     {"numerics", numerics()},
                     {"threads", at::get_num_threads()},
                     {"origin", in_.origin},
                     {"metrics", metrics_->position().to_json()},
                     {"initial_validation", optional_json(initial_)},
                     {"last_validation", optional_json(last_)},
                     {"best_validation", optional_json(best_)},
                     {"best_step", best_step_},
                     {"validated_step", validated_step_}};
  const auto checkpoint = write_checkpoint(in_.run, step_, content);
  if (best_ && best_step_ == step_) point_to(in_.run, "best", checkpoint);
  prune_checkpoints(in_.run, in_.config.train.keep_checkpoints);
  is_saved_ = true;
}

void Trainer::restore(const fs::path& checkpoint) {
  const json trainer = read_checkpoint(checkpoint);
  const auto where = (checkpoint / "trainer.json").string();
  const auto total_steps = require<int64_t>(trainer, "total_steps", where);
  if (total_steps != length_.total_steps) {
    throw ConfigError("{}: the run had {} steps, with these settings it has {}: resume with the same data and [train]", where, total_steps,
                      length_.total_steps);
  }
  step_ = require<int64_t>(trainer, "step", where);
  epoch_ = require<int64_t>(trainer, "epoch", where);
  tokens_ = require<int64_t>(trainer, "tokens", where);
  num_skipped_ = require<int64_t>(trainer, "skipped_in_a_row", where);
  stage_ = require<int>(trainer, "stage", where);
  seconds_ = require<double>(trainer, "seconds", where);
  best_step_ = require<int64_t>(trainer, "best_step", where);
  validated_step_ = require<int64_t>(trainer, "validated_step", where);
  initial_ = optional_result(trainer, "initial_validation", where);
  last_ = optional_result(trainer, "last_validation", where);
  best_ = optional_result(trainer, "best_validation", where);
  in_.train.restore(require<json>(trainer, "loader", where));
  method_->restore(require<json>(trainer, "method", where));
  if (get_or<json>(trainer, "numerics", numerics(), where) == numerics()) {
    scaler_.restore(require<json>(trainer, "loss_scaler", where));
    if (trainer.contains("learning_rate_backoff")) backoff_.restore(trainer["learning_rate_backoff"]);
  } else {  // resumed with other settings after a failure: what that failure had lowered begins anew
    num_skipped_ = 0;
  }
  const auto tensors = read_tensors(checkpoint / "optimizer.safetensors");
  optimizer_->restore(
      [&](const std::string& name) {
        for (const auto& [stored, tensor] : tensors) {
          if (stored == name) return tensor;
        }
        throw DataError("{}: no tensor '{}': it belongs to another student", (checkpoint / "optimizer.safetensors").string(), name);
      },
      require<int64_t>(trainer, "optimizer_steps", where));
  metrics_ = std::make_unique<MetricsLog>(in_.run, MetricsPosition::from_json(require<json>(trainer, "metrics", where), where), step_);
  const auto threads = get_or<int>(trainer, "threads", 0, where);
  if (in_.student.device().is_cpu() && threads != 0 && threads != at::get_num_threads()) {
    spdlog::warn("{}: was trained with {} threads, now there are {}: the run goes on, but not to the same bits", where, threads,
                 at::get_num_threads());
  }
  is_saved_ = true;
  restore_best(checkpoint);
  prune_checkpoints(in_.run, in_.config.train.keep_checkpoints);
}

// Lets `best` say what the checkpoint says, which a kill between two writes may have left undone, and drops what was made after it.
void Trainer::restore_best(const fs::path& checkpoint) {
  drop_checkpoints_after(in_.run, step_);
  if (best_) {
    if (const auto best = checkpoint_at(in_.run, best_step_)) {
      point_to(in_.run, "best", *best);
      return;
    }
    // It was pruned when a later one took its place, which now is dropped.
    spdlog::warn("{}: the best checkpoint, of step {}, is gone: the next best is chosen from here on", checkpoint.string(), best_step_);
    best_.reset();
    best_step_ = 0;
    is_saved_ = false;
    if (validated_step_ == step_ && step_ > 0 && last_ && std::isfinite(last_->ce_loss)) {
      best_ = last_;
      best_step_ = step_;
      point_to(in_.run, "best", checkpoint);
      return;
    }
  }
  remove_pointer(in_.run, "best");
}

json Trainer::summary() const {
  json best = optional_json(best_);
  if (best_) best["step"] = best_step_;
  return {{"step", step_},
          {"total_steps", length_.total_steps},
          {"epoch", epoch_},
          {"tokens", tokens_},
          {"seconds", seconds_},
          {"initial_validation", optional_json(initial_)},
          {"last_validation", optional_json(last_)},
          {"best_validation", best}};
}

}  // namespace distil_xlstm::train
