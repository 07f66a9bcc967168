// A run: its stages step by step, validation, checkpoints, and what to do when a step fails. The step itself is train/step.h.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "data/loader.h"
#include "student/student.h"
#include "teacher/source.h"
#include "train/recorder.h"
#include "train/run_plan.h"
#include "train/run_state.h"
#include "train/step.h"
#include "train/step_batches.h"

namespace distil_xlstm::train {

struct TrainerInputs {
  const config::RunConfig& config;
  const RunPlan& plan;
  teacher::TeacherSource& teacher;
  student::Student& student;
  data::Loader& train;
  data::Loader* validation = nullptr;  // null: no validation, no best checkpoint
  fs::path run;                        // the run's directory, which exists
  at::ScalarType compute_dtype = at::kFloat;
  json origin = nullptr;         // what the run is trained from (train/origin.h): kept in every checkpoint
  ops::HeadRows head_rows;       // that the losses run over
  std::string resume_from;       // a checked checkpoint's directory, "" = a fresh run; the student already has its weights
  int64_t stop_after_steps = 0;  // save and return after so many steps of this process; 0: never
  Ranks ranks;
};

enum class TrainStatus { finished, stopped };

class Trainer {
 public:
  // All references must outlive the trainer. Throws ConfigError for settings that do not fit together, DataError for a checkpoint of
  // another run.
  explicit Trainer(const TrainerInputs& inputs);

  // Trains to the end of the run, or until a signal or stop_after_steps, and leaves a checkpoint either way. Throws IoError when the disk
  // is full or the run's directory is gone; what was saved before stays whole. Throws Error after max_skipped_steps in a row; the last
  // checkpoint is then as it was. Weights that give no finite loss are never saved.
  TrainStatus run();

  // One step of the run, without what is written and measured around it.
  StepResult train_step(const std::vector<data::Batch>& batches);

  [[nodiscard]] const RunState& state() const { return state_; }
  [[nodiscard]] const RunLength& length() const { return in_.plan.length; }
  [[nodiscard]] json summary() const { return state_.summary(length().total_steps); }  // for run.json

 private:
  TrainStatus train_and_save();
  void train();
  bool begin_next_stage();
  void end_epoch();
  void catch_up();
  void on_good_step(const StepResult& result, double seconds);
  void on_skipped_step(const StepResult& result);
  void validate();
  void save();
  [[nodiscard]] bool is_sound();
  void load_best_weights();
  void restore(const fs::path& checkpoint);
  void restore_best(const fs::path& checkpoint);
  [[nodiscard]] json numerics() const;
  [[nodiscard]] distill::Stage stage() const;
  [[nodiscard]] Recorder::Parts recorder_parts() const;
  [[nodiscard]] distill::StepContext context() const;

  TrainerInputs in_;
  distill::Method& method_;
  TrainingStep step_;
  StepBatches batches_;
  std::unique_ptr<Recorder> recorder_;

  RunState state_;         // in every checkpoint
  bool is_saved_ = false;  // whether the newest checkpoint holds it
  data::Batch probe_;      // one row of the last step: what weights are tried on before they are saved
  int64_t process_steps_ = 0;
  bool has_no_more_data_ = false;
};

}  // namespace distil_xlstm::train
