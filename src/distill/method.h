// Distillation methods by name: what each asks of a step (docs/mathematics.md 6 to 8). The trainer knows none of them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "config/run_config.h"
#include "ops/head_loss.h"

namespace distil_xlstm::distill {

// Where training stands before an optimizer step.
struct StepContext {
  int64_t step = 0;  // 0-based
  int64_t total_steps = 0;
  int64_t epoch = 0;       // 0-based
  int64_t num_epochs = 0;  // ceil
};

// What one optimizer step uses, held for all its micro-batches.
struct StepPlan {
  double alpha = 0.0, temperature = 1.0, beta = 0.0;  // as logged: the teacher's share of the head loss, T, the weight of L_F
  ops::HeadLossOptions head;                          // the weights of every head loss, T, divergence
  double alignment_weight = 0.0;                      // of L_F
  int stage = 1;                                      // annealing-kd: 1 or 2; stage 2 starts from the best checkpoint of stage 1
};

class Method {
 public:
  virtual ~Method() = default;
  [[nodiscard]] virtual std::string name() const = 0;
  [[nodiscard]] virtual StepPlan plan(const StepContext& context) const = 0;
  virtual void end_epoch(int64_t steps_done) = 0;
  [[nodiscard]] virtual json state() const = 0;
  virtual void restore(const json& state) = 0;  // throws DataError
};

// Names in the order of the documentation.
const std::vector<std::string>& method_names();

// Keys under [distill] that the method does not use ("alpha", "beta.schedule"): stated by `plan` and at the start of a run.
// Throws ConfigError for an unknown name.
std::vector<std::string> ignored_keys(const std::string& method);

// What is wrong with [distill] whatever the text's length: unknown names, T <= 0, alpha + beta > 1 for "convex" at the first step, or at
// any of max_steps (0: not set) where the schedules do not depend on epochs. make_method says the rest. Throws ConfigError.
void check_before_length(const config::DistillSettings& settings, int64_t max_steps);

// Checks everything about [distill] over the whole run. Throws ConfigError. steps_per_epoch 0: the steps divide evenly into the epochs.
std::unique_ptr<Method> make_method(const config::DistillSettings& settings, int64_t total_steps, int64_t num_epochs,
                                    int64_t steps_per_epoch = 0);

}  // namespace distil_xlstm::distill
