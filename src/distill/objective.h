// The terms of a run's loss, and what a step makes of them. Their weights are those of the step (StepPlan).
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "distill/hidden_term.h"
#include "distill/method.h"
#include "ops/head_loss.h"

namespace distil_xlstm::distill {

// Which hidden terms a step computes.
using Measured = std::vector<bool>;

class Objective {
 public:
  // The terms of settings.method (method_terms). Throws ConfigError where one does not fit the depths.
  Objective(const config::DistillSettings& settings, int64_t teacher_layers, int64_t student_layers);

  [[nodiscard]] const std::vector<std::unique_ptr<HiddenTerm>>& hidden() const { return hidden_; }
  // Over the heads beyond the kernels', with their weights in this step.
  [[nodiscard]] std::vector<ops::WeightedHeadTerm> added_head_terms(const StepPlan& plan) const;
  // Of all terms, as they stand in metrics: the kernels', those added over the heads, the hidden ones.
  [[nodiscard]] std::vector<std::string> names() const;
  // Their weights in this step, 0 for what is only measured.
  [[nodiscard]] std::vector<double> weights(const StepPlan& plan) const;

  // Those with a weight, and those whose time to be measured it is.
  [[nodiscard]] Measured measured(const StepPlan& plan, int64_t step) const;
  // What they need of the teacher, all together. Throws ConfigError for two that want different states.
  [[nodiscard]] teacher::TeacherForwardOptions teacher_options(const Measured& measured) const;
  [[nodiscard]] bool needs_layers(const Measured& measured) const;
  [[nodiscard]] bool is_sum_over_rows(const Measured& measured) const;

 private:
  std::vector<const ops::HeadTerm*> added_;
  std::vector<std::unique_ptr<HiddenTerm>> hidden_;
};

}  // namespace distil_xlstm::distill
