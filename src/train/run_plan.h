// What a run is to do: length and method, which need its data, and the objective, which needs the models' depths.
#pragma once

#include <memory>

#include "config/run_config.h"
#include "data/loader.h"
#include "distill/method.h"
#include "distill/objective.h"
#include "train/run_length.h"

namespace distil_xlstm::train {

struct RunPlan {
  RunLength length;
  std::unique_ptr<distill::Method> method;
  distill::Objective objective;
};

// Throws ConfigError for settings that do not fit together, DataError without rows.
inline RunPlan plan_run(const config::RunConfig& config, const data::Loader& loader, distill::Objective objective) {
  const RunLength length = run_length(config.train, loader.rows_per_epoch(), loader.context_length());
  return {length, distill::make_method(config.distill, length.total_steps, length.num_epochs, length.steps_per_epoch),
          std::move(objective)};
}

}  // namespace distil_xlstm::train
