// One optimizer step: Algorithm 1 of the paper (docs/mathematics.md 7). Training and `bench` take it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ranks.h"
#include "config/run_config.h"
#include "distill/objective.h"
#include "optim/adamw.h"
#include "student/student.h"
#include "teacher/source.h"
#include "train/agree.h"
#include "train/micro_batch.h"

namespace distil_xlstm::train {

// A term of the loss over a whole step: over its targets, a hidden term over its rows. In nats but for mse_loss and agreement.
struct TermMean {
  std::string name;
  double weight = 0.0;         // in the loss; 0: measured only
  std::optional<double> mean;  // where it was measured
};

struct StepResult {
  distill::StepPlan plan;
  size_t stage = 0;  // index in the method's stages
  StepCounts counts;
  std::vector<TermMean> terms;  // in the order of Objective::names
  double loss = 0.0;
  double grad_norm = 0.0;            // before clipping
  double learning_rate = 0.0;        // as used: schedule times learning_rate_scale
  double learning_rate_scale = 1.0;  // below 1 after skipped steps
  double loss_scale = 1.0;
  bool is_skipped = false;
  std::string model_problem;  // of a skipped step: which model's figures are not finite, and why; "" where the gradient alone is not
  bool is_teachers_problem = false;
  std::vector<std::string> bad_parameters;  // of a skipped step: those whose gradient is not finite

  [[nodiscard]] bool is_measured(std::string_view name) const;
  // NaN where it was not measured. Throws ValueError where there is no such term.
  [[nodiscard]] double mean(std::string_view name) const;
};

// What every step of a run works on. All references must outlive the step.
struct StepParts {
  const config::RunConfig& config;
  teacher::TeacherSource& teacher;
  student::Student& student;
  const distill::Method& method;
  const distill::Objective& objective;
  ops::HeadRows head_rows;  // that the losses run over
  at::ScalarType compute_dtype = at::kFloat;
  Ranks ranks;
};

class TrainingStep {
 public:
  explicit TrainingStep(const StepParts& parts);

  // A fresh optimizer over what the stage trains. Throws ConfigError where the stage names a group that the student does not have, or wants
  // the teacher's states as inputs and the models' depths differ.
  void begin_stage(const distill::Stage& stage);

  // One optimizer step over all its micro-batches (the last of an epoch may have fewer). A step whose loss or gradient is not finite
  // changes nothing but the loss scale, or, without one, the learning rate of the steps after it. `next`, unless null: the first
  // micro-batch of the step after this one, whose teacher may run ahead (MicroBatches::run).
  StepResult run(const std::vector<data::Batch>& batches, const distill::StepContext& context, const data::Batch* next = nullptr);

  // For checkpoints.
  [[nodiscard]] optim::AdamW& optimizer() { return *optimizer_; }
  [[nodiscard]] optim::LossScaler& loss_scaler() { return scaler_; }
  [[nodiscard]] optim::LearningRateBackoff& backoff() { return backoff_; }

 private:
  void check_stage(const distill::Stage& stage) const;
  [[nodiscard]] StepResult begin(const std::vector<data::Batch>& batches, const distill::StepContext& context) const;
  [[nodiscard]] GradientSettings gradient_settings(const StepResult& result, const distill::StepContext& context) const;
  [[nodiscard]] std::optional<NextBatch> next_batch(const data::Batch* next, distill::StepContext context) const;
  void read_means(StepResult& result, const LossSums& sums) const;
  void find_problem(StepResult& result, const std::vector<data::Batch>& batches) const;
  void update(const StepResult& result);

  StepParts in_;
  MicroBatches micro_batches_;
  distill::Stage stage_;
  NamedTensors trained_;  // the parameters of the stage
  std::unique_ptr<optim::AdamW> optimizer_;
  optim::LossScaler scaler_;
  optim::LearningRateBackoff backoff_;
};

}  // namespace distil_xlstm::train
