#include "train/trainer.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/signals.h"
#include "base/text.h"
#include "ops/device.h"
#include "student/registry.h"
#include "train/advice.h"
#include "train/checkpoint.h"

namespace distil_xlstm::train {

Trainer::Trainer(const TrainerInputs& inputs)
    : in_(inputs),
      method_(*in_.plan.method),
      step_({.config = in_.config,
             .teacher = in_.teacher,
             .student = in_.student,
             .method = method_,
             .objective = in_.plan.objective,
             .head_rows = in_.head_rows,
             .compute_dtype = in_.compute_dtype,
             .ranks = in_.ranks}),
      batches_(in_.train, in_.config.train.gradient_accumulation_steps) {
  in_.student.set_compute_dtype(in_.compute_dtype);
  if (in_.resume_from.empty()) {
    in_.train.begin_epoch(0);
    recorder_ = std::make_unique<Recorder>(recorder_parts());
  } else {
    restore(in_.resume_from);
  }
}

Recorder::Parts Trainer::recorder_parts() const {
  return {.config = in_.config, .student = in_.student, .run = in_.run, .length = length(), .ranks = in_.ranks};
}

distill::StepContext Trainer::context() const {
  return {.step = state_.step,
          .total_steps = length().total_steps,
          .epoch = state_.epoch,
          .num_epochs = length().num_epochs,
          .stage = state_.stage};
}

TrainStatus Trainer::run() {
  const SignalGuard guard;
  const ops::PriorityStream stream(in_.student.device());  // the teacher, a micro-batch ahead, fills what the student leaves
  try {
    return train_and_save();
  } catch (const IoError& error) {
    recorder_->check_in_place();  // says so, if that is why
    throw IoError("{}{}", error.what(), what_is_kept(in_.run));
  } catch (const fs::filesystem_error& error) {
    recorder_->check_in_place();
    throw IoError("{}{}", error.what(), what_is_kept(in_.run));
  }
}

TrainStatus Trainer::train_and_save() {
  try {
    train();
  } catch (const Interrupted&) {  // between two steps, or in a validation, which the resumed run makes up for
    recorder_->end_progress_line(state_);
    if (!is_saved_) save();
    return TrainStatus::stopped;
  }
  const bool is_finished = state_.step >= length().total_steps || has_no_more_data_;
  if (!is_finished) recorder_->end_progress_line(state_);
  if (!is_saved_) save();
  if (is_finished && !is_saved_) {
    throw Error(fmt::format("step {}: the run's last weights give no finite loss and were not saved. {}", state_.step,
                            how_to_go_on(in_.run, in_.config, stage(), in_.compute_dtype)));
  }
  return is_finished ? TrainStatus::finished : TrainStatus::stopped;
}

void Trainer::train() {
  catch_up();
  while (state_.step < length().total_steps) {
    while (begin_next_stage()) {
    }
    const double began = monotonic_seconds();
    const auto batches = batches_.take(/*reads_next=*/state_.step + 1 < length().total_steps);
    if (batches.empty()) {
      if (length().ends_with_epochs && state_.epoch + 1 >= length().num_epochs) {
        // The data ended before total_steps, since steps were skipped.
        has_no_more_data_ = true;
        if (in_.validation != nullptr && state_.validated_step != state_.step) validate();
        return;
      }
      end_epoch();
      continue;
    }
    const auto result = train_step(batches);
    const double seconds = monotonic_seconds() - began;
    state_.tokens += result.counts.num_tokens;
    state_.seconds += seconds;
    is_saved_ = false;
    if (result.is_skipped)
      on_skipped_step(result);
    else
      on_good_step(result, seconds);
    const bool is_told_to_stop = in_.stop_after_steps > 0 && ++process_steps_ >= in_.stop_after_steps;
    if (any_rank(in_.ranks, received_signal() != 0 || is_told_to_stop)) return;
  }
}

StepResult Trainer::train_step(const std::vector<data::Batch>& batches) {
  auto result = step_.run(batches, context(), batches_.next());
  probe_ = first_row(batches.front());
  if (!result.is_skipped) ++state_.step;
  return result;
}

// The validation that belongs to this step, where a signal kept the process before this one from it.
void Trainer::catch_up() {
  if (in_.validation == nullptr || state_.validated_step == state_.step) return;
  if (state_.step != 0 && state_.step != length().total_steps && !is_due(state_.step, in_.config.eval.every_steps)) return;
  validate();
  if (state_.best_step == state_.step && state_.best) save();
}

void Trainer::end_epoch() {
  method_.end_epoch(state_.step);
  in_.train.begin_epoch(++state_.epoch);
  is_saved_ = false;
}

// False where the stage goes on. The last weights of a stage may be its best: they are measured and saved before.
bool Trainer::begin_next_stage() {
  const auto stages = method_.stages();
  if (distill::stage_at(stages, context()) == state_.stage) return false;
  const distill::Stage& stage = stages.at(state_.stage + 1);
  const bool wants_best = stage.start == distill::StageStart::best_of_stage_before;
  if (wants_best && in_.validation != nullptr && state_.step > 0) {
    if (state_.validated_step != state_.step) validate();
    if (!is_saved_) save();
  }
  ++state_.stage;
  is_saved_ = false;
  step_.begin_stage(stage);
  std::string from = "the weights as they are";
  if (wants_best) from = state_.best ? fmt::format("the weights of step {}", state_.best_step) : from + ": no validation chose better ones";
  spdlog::info("step {}: {} begins from {}", state_.step, stage.name, from);
  if (wants_best && state_.best && state_.best_step != state_.step) load_best_weights();
  return true;
}

void Trainer::load_best_weights() {
  const auto best = checkpoint_at(in_.run, state_.best_step);
  if (!best) {
    throw DataError("{}: there is no checkpoint of step {}, the best of the stage before, from which the next one begins: put it back",
                    (in_.run / "checkpoints").string(), state_.best_step);
  }
  const at::NoGradGuard no_grad;
  const auto chosen = student::load_student(
      io::open_model(best->string()),
      {.device = in_.student.device(), .embedding_VD = in_.student.embedding_weight(), .head_VD = in_.student.head_weight()});
  const auto& from = chosen->parameters();
  const auto& to = in_.student.parameters();
  for (size_t i = 0; i < to.size(); ++i) Tensor(to[i].second).copy_(from[i].second);
}

void Trainer::on_good_step(const StepResult& result, double seconds) {
  state_.skipped_in_a_row = 0;
  recorder_->step(result, state_, seconds);
  const bool is_last = state_.step == length().total_steps;
  const bool validates = in_.validation != nullptr && (is_last || is_due(state_.step, in_.config.eval.every_steps));
  if (validates) validate();
  const bool is_best = validates && state_.best_step == state_.step;
  if (is_last || is_best || is_due(state_.step, in_.config.train.save_every_steps)) save();
}

void Trainer::on_skipped_step(const StepResult& result) {
  ++state_.skipped_in_a_row;
  std::string scale;
  if (const double now = step_.loss_scaler().scale(); now != result.loss_scale)
    scale = fmt::format(", loss_scale {} -> {}", result.loss_scale, now);
  if (const double now = step_.backoff().scale(); now != result.learning_rate_scale)
    scale = fmt::format(", learning_rate_scale {:.3g} -> {:.3g}", result.learning_rate_scale, now);
  const auto limit = in_.config.train.max_skipped_steps;
  const auto message = fmt::format("step {}: {}; skipped{} ({} in a row, stops at {})", state_.step, why_skipped(result), scale,
                                   state_.skipped_in_a_row, limit);
  recorder_->skipped(result, state_, message);
  // What the teacher cannot do with the first rows it will not do with others.
  if (result.is_teachers_problem && state_.step == 0) throw Error(fmt::format("step 0: {}", result.model_problem));
  if (state_.skipped_in_a_row < limit) return;
  throw Error(fmt::format("{}: {} steps in a row could not be taken. {}", message, state_.skipped_in_a_row,
                          how_to_go_on(in_.run, in_.config, stage(), in_.compute_dtype, result.is_teachers_problem)));
}

void Trainer::validate() {
  const auto result =
      eval::validate(in_.student, in_.teacher, *in_.validation,
                     {.max_tokens = in_.config.eval.max_tokens, .head_rows = in_.head_rows, .teacher_name = in_.config.teacher.model});
  if (!result.teacher_problem.empty()) throw Error(fmt::format("step {}: validation: {}", state_.step, result.teacher_problem));
  recorder_->validation(result, state_);
  state_.record_validation(result);
  is_saved_ = false;
}

// Whether the weights are worth keeping: they are finite, and so is the loss that they give on a row of the last step. (Adam may make
// weights of 1e30, which are finite and useless.)
bool Trainer::is_sound() {
  const at::NoGradGuard no_grad;
  std::vector<Tensor> finite;
  for (const auto& [name, tensor] : in_.student.parameters()) finite.push_back(tensor.isfinite().all());
  if (!at::stack(finite).all().item<bool>()) return false;
  if (probe_.num_rows == 0) return true;  // no step was taken since they were loaded or drawn
  const auto batch = nn::to_device(probe_, in_.student.device());
  const auto hidden_BSD = in_.student.forward_hidden(batch.tokens_BS, batch.is_start_BS);
  if (!hidden_BSD.isfinite().all().item<bool>()) return false;
  const auto losses = ops::head_losses(hidden_BSD, in_.student.head_weight(), Tensor(), Tensor(), batch.targets_BS, batch.mask_BS, {}, 1.0,
                                       {.with_gradient = false});
  return std::isfinite(losses.sums[ops::kCe].item<double>());
}

// What a failed run may be resumed with otherwise than before.
json Trainer::numerics() const {
  json numerics = {{"learning_rate", in_.config.optimizer.learning_rate},
                   {"precision", in_.config.train.precision},
                   {"initial_loss_scale", in_.config.optimizer.initial_loss_scale}};
  for (const auto& stage : method_.stages()) {
    if (stage.learning_rate > 0.0) numerics[stage.learning_rate_key] = stage.learning_rate;
  }
  return numerics;
}

distill::Stage Trainer::stage() const {
  return method_.stages().at(state_.stage);
}

void Trainer::save() {
  if (!is_sound()) {
    const auto last = follow_pointer(in_.run, "last");
    spdlog::warn("step {}: the weights give no finite loss and are not saved{}", state_.step,
                 last ? "; the last checkpoint stays " + last->filename().string() : "");
    return;
  }
  const auto layout = config::name_of(in_.config.student.slstm_layout);
  CheckpointContent content{.student_config = in_.student.shape().to_json(layout),
                            .model = in_.student.stored_tensors(layout, /*with_frozen=*/false),
                            .optimizer = step_.optimizer().state_tensors(),
                            .trainer = state_.to_json()};
  content.trainer.update(json{{"total_steps", length().total_steps},
                              {"optimizer_steps", step_.optimizer().steps()},
                              {"loader", batches_.place()},
                              {"method", method_.state()},
                              {"loss_scaler", step_.loss_scaler().state()},
                              {"learning_rate_backoff", step_.backoff().state()},
                              {"numerics", numerics()},
                              {"threads", at::get_num_threads()},
                              {"origin", in_.origin}});
  recorder_->checkpoint(state_, std::move(content));
  is_saved_ = true;
}

void Trainer::restore(const fs::path& checkpoint) {
  const json saved = read_checkpoint(checkpoint);
  const auto where = (checkpoint / "trainer.json").string();
  const auto total_steps = require<int64_t>(saved, "total_steps", where);
  if (total_steps != length().total_steps) {
    throw ConfigError("{}: the run had {} steps, with these settings it has {}: resume with the same data and [train]", where, total_steps,
                      length().total_steps);
  }
  state_ = RunState::from_json(saved, where);
  const auto stages = method_.stages();
  if (state_.stage >= stages.size()) throw DataError("{}: stage {} of a method of {}", where, state_.stage + 1, stages.size());
  if (state_.stage > 0) step_.begin_stage(stages[state_.stage]);
  in_.train.restore(require<json>(saved, "loader", where));
  method_.restore(require<json>(saved, "method", where));
  if (get_or<json>(saved, "numerics", numerics(), where) == numerics()) {
    step_.loss_scaler().restore(require<json>(saved, "loss_scaler", where));
    if (saved.contains("learning_rate_backoff")) step_.backoff().restore(saved["learning_rate_backoff"]);
  } else {  // resumed with other settings after a failure: what that failure had lowered begins anew
    state_.skipped_in_a_row = 0;
  }
  const auto tensors = read_tensors(checkpoint / "optimizer.safetensors");
  step_.optimizer().restore(
      [&](const std::string& name) {
        for (const auto& [stored, tensor] : tensors) {
          if (stored == name) return tensor;
        }
        throw DataError("{}: no tensor '{}': it belongs to another student", (checkpoint / "optimizer.safetensors").string(), name);
      },
      require<int64_t>(saved, "optimizer_steps", where));
  recorder_ =
      std::make_unique<Recorder>(recorder_parts(), MetricsPosition::from_json(require<json>(saved, "metrics", where), where), state_.step);
  const auto threads = get_or<int>(saved, "threads", 0, where);
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
  drop_checkpoints_after(in_.run, state_.step);
  if (state_.best) {
    if (const auto best = checkpoint_at(in_.run, state_.best_step)) {
      point_to(in_.run, "best", *best);
      return;
    }
    // It was pruned when a later one took its place, which now is dropped.
    spdlog::warn("{}: the best checkpoint, of step {}, is gone: the next best is chosen from here on", checkpoint.string(),
                 state_.best_step);
    state_.best.reset();
    state_.best_step = 0;
    is_saved_ = false;
    const auto& last = state_.last;
    if (state_.validated_step == state_.step && state_.step > 0 && last && std::isfinite(last->ce_loss)) {
      state_.best = last;
      state_.best_step = state_.step;
      point_to(in_.run, "best", checkpoint);
      return;
    }
  }
  remove_pointer(in_.run, "best");
}

}  // namespace distil_xlstm::train
