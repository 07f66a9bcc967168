// The training loop: Algorithm 1 of the paper (docs/mathematics.md 7), checkpoints, validation, and what to do when a step fails.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "config/run_config.h"
#include "data/loader.h"
#include "distill/alignment.h"
#include "distill/method.h"
#include "eval/validation.h"
#include "optim/adamw.h"
#include "student/student.h"
#include "teacher/teacher.h"
#include "train/metrics.h"
#include "train/micro_batch.h"
#include "train/run_length.h"

namespace distil_xlstm::train {

struct TrainerInputs {
  const config::RunConfig& config;
  teacher::Teacher& teacher;
  student::Student& student;
  data::Loader& train;
  data::Loader* validation = nullptr;  // null: no validation, no best checkpoint
  fs::path run;                        // the run's directory, which exists
  at::ScalarType compute_dtype = at::kFloat;
  json origin = nullptr;         // what the run is trained from (train/origin.h): kept in every checkpoint
  ops::HeadRows head_rows;       // that the losses run over
  std::string resume_from;       // a checked checkpoint's directory, "" = a fresh run; the student already has its weights
  int64_t stop_after_steps = 0;  // save and return after so many steps of this process; 0: never
};

// Means over the step's targets (L_F: rows), in nats.
struct StepResult {
  distill::StepPlan plan;
  bool is_skipped = false;
  std::string model_problem;  // of a skipped step: which model's figures are not finite, and why; "" where the gradient alone is not
  bool is_teachers_problem = false;
  double loss = 0.0, ce_loss = 0.0, kd_loss = 0.0, kl_at_1 = 0.0, teacher_nll = 0.0, agreement = 0.0, mse_loss = 0.0, mixed_ce = 0.0;
  std::optional<double> alignment_loss;  // when it was measured
  double grad_norm = 0.0;                // before clipping
  double learning_rate = 0.0;            // as used: schedule times learning_rate_scale
  double learning_rate_scale = 1.0;      // below 1 after skipped steps
  double loss_scale = 1.0;
  int64_t num_targets = 0, num_rows = 0, num_tokens = 0;
};

enum class TrainStatus { finished, stopped };

class Trainer {
 public:
  // Throws ConfigError for settings that do not fit together, DataError for a checkpoint of another run.
  explicit Trainer(const TrainerInputs& inputs);

  // Trains to the end of the run, or until a signal or stop_after_steps, and leaves a checkpoint either way. Throws IoError when the disk
  // is full or the run's directory is gone; what was saved before stays whole. Throws Error after max_skipped_steps in a row; the last
  // checkpoint is then as it was. Weights that give no finite loss are never saved.
  TrainStatus run();

  // One optimizer step over all its micro-batches (the last of an epoch may have fewer). A step whose loss or gradient is not finite
  // changes nothing but the loss scale, or, without one, the learning rate of the steps after it.
  StepResult train_step(const std::vector<data::Batch>& batches);

  [[nodiscard]] int64_t step() const { return step_; }
  [[nodiscard]] const RunLength& length() const { return length_; }
  [[nodiscard]] json summary() const;  // for run.json: step, tokens, seconds, initial, last and best validation

 private:
  std::vector<data::Batch> take_batches();
  std::vector<data::Batch> read_batches();
  [[nodiscard]] bool measures_alignment(const distill::StepPlan& plan, int64_t step) const;
  TrainStatus train_and_save();
  void train();
  void end_epoch();
  void start_stage_two();
  void catch_up();
  void on_good_step(const StepResult& result, double seconds);
  void on_skipped_step(const StepResult& result);
  void log_step(const StepResult& result, double seconds);
  void validate();
  void save();
  [[nodiscard]] bool is_sound();
  void restore(const fs::path& checkpoint);
  void restore_best(const fs::path& checkpoint);
  void make_optimizer();
  [[nodiscard]] json numerics() const;
  void find_problem(StepResult& result, const std::vector<data::Batch>& batches);
  [[nodiscard]] std::string how_to_go_on(bool is_teachers_problem = false) const;
  [[nodiscard]] std::string what_is_kept() const;
  [[nodiscard]] distill::StepContext context() const;
  [[nodiscard]] std::string progress_text(const StepResult& result) const;

  TrainerInputs in_;
  RunLength length_;
  std::unique_ptr<distill::Method> method_;
  distill::Alignment alignment_;
  MicroBatches micro_batches_;
  std::unique_ptr<optim::AdamW> optimizer_;
  optim::LossScaler scaler_;
  optim::LearningRateBackoff backoff_;
  std::unique_ptr<MetricsLog> metrics_;
  ProgressLine progress_;

  // All of this is in a checkpoint.
  int64_t step_ = 0;  // optimizer steps done (k)
  int64_t epoch_ = 0;
  int64_t tokens_ = 0;       // input tokens seen, skipped steps included
  int64_t num_skipped_ = 0;  // in a row
  int stage_ = 1;
  double seconds_ = 0.0;  // spent in steps
  std::optional<eval::ValidationResult> initial_, last_, best_;
  int64_t best_step_ = 0;
  int64_t validated_step_ = -1;  // of last_

  std::vector<data::Batch> next_batches_;    // read ahead of their step
  json place_before_next_;                   // the loader's place before them: what a checkpoint holds
  std::vector<std::string> bad_parameters_;  // of the last skipped step
  bool is_saved_ = false;                    // whether the newest checkpoint holds all of the above
  data::Batch probe_;                        // one row of the last step: what weights are tried on before they are saved
  std::optional<StepResult> last_good_;      // for the progress line
  int64_t interval_tokens_ = 0;              // since the last logged step
  double interval_seconds_ = 0.0;
  double tokens_per_second_ = 0.0;
  int64_t process_steps_ = 0;
  bool has_no_more_data_ = false;
};

}  // namespace distil_xlstm::train
