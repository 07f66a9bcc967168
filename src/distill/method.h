// Distillation methods by name: what each asks of a step, and the stages of its run (docs/mathematics.md 6 to 8). Whoever trains knows
// none of them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "config/run_config.h"
#include "distill/stage.h"
#include "ops/head_terms.h"

namespace distil_xlstm::distill {

// What one optimizer step uses, held for all its micro-batches.
struct StepPlan {
  double alpha = 0.0, temperature = 1.0, beta = 0.0;  // as logged: the teacher's share of the head loss, T, the weight of L_F
  ops::HeadObjective head;                            // weights of the kernels' terms over the heads, T, divergence
  std::vector<double> added_head_weights;             // one for each of MethodTerms::head
  std::vector<double> hidden_weights;                 // one for each of MethodTerms::hidden
};

// The terms that a method weighs or has measured, by name, beside those that the kernels always sum.
struct MethodTerms {
  std::vector<std::string> head;                         // ops::add_head_term
  std::vector<std::string> hidden = {"alignment_loss"};  // distill::add_hidden_term
};

class Method {
 public:
  explicit Method(std::string name) : name_(std::move(name)) {}
  virtual ~Method() = default;

  [[nodiscard]] const std::string& name() const { return name_; }
  // One or more, in their order.
  [[nodiscard]] virtual std::vector<Stage> stages() const { return {Stage{.name = "stage I"}}; }
  // Of a step in the stage context.stage.
  [[nodiscard]] virtual StepPlan plan(const StepContext& context) const = 0;
  virtual void end_epoch(int64_t /*steps_done*/) {}
  // What a checkpoint keeps; restore throws DataError for another method's.
  [[nodiscard]] virtual json state() const { return {{"method", name_}}; }
  virtual void restore(const json& state);

 private:
  std::string name_;
};

// `context` in the stage that it belongs to, looked for from context.stage on.
StepContext in_its_stage(const Method& method, StepContext context);

struct MethodInputs {
  const config::DistillSettings& settings;
  int64_t total_steps = 0, num_epochs = 0, steps_per_epoch = 0;
};

struct MethodKind {
  MethodTerms terms;
  // Throws ConfigError for settings that do not fit the run.
  std::function<std::unique_ptr<Method>(const MethodInputs&)> make;
  // What can be said against the settings before the length of the text is known (max_steps 0: not set). Empty: nothing.
  std::function<void(const config::DistillSettings& settings, int64_t max_steps)> check;
  std::vector<std::string> ignored_keys;  // under [distill]: "alpha", "beta.schedule"
};

// Adds a method beside those of methods.cpp. Throws ValueError when the name is taken.
void add_method(const std::string& name, MethodKind kind);

// Names in the order of the documentation; added ones last.
std::vector<std::string> method_names();

// These throw ConfigError for an unknown name.
MethodTerms method_terms(const std::string& method);
// Keys under [distill] that the method does not use.
std::vector<std::string> ignored_keys(const std::string& method);

// What is wrong with [distill] whatever the text's length: relations of settings, alpha + beta > 1 for "convex" at the first step, or at
// any of max_steps (0: not set) where the schedules do not depend on epochs. make_method says the rest. Throws ConfigError.
void check_before_length(const config::DistillSettings& settings, int64_t max_steps);

// Checks everything about [distill] over the whole run. Throws ConfigError. steps_per_epoch 0: the steps divide evenly into the epochs.
std::unique_ptr<Method> make_method(const config::DistillSettings& settings, int64_t total_steps, int64_t num_epochs,
                                    int64_t steps_per_epoch = 0);

}  // namespace distil_xlstm::distill
