// alpha, T and beta at chosen steps of a run, as `plan` prints them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "distill/method.h"

namespace distil_xlstm::distill {

struct ScheduleRow {
  int64_t step = 0;   // 0-based
  int64_t epoch = 0;  // 0-based
  StepPlan plan;
  std::string note;  // "epoch 2 begins", "last step", or empty
};

// Rows at steps 0, 1, 2, 10, 100, 1000, at the first and last step of the epochs (of about a dozen when there are more) and at the last
// step. Throws ConfigError as make_method.
std::vector<ScheduleRow> schedule_table(const config::DistillSettings& settings, int64_t total_steps, int64_t steps_per_epoch);

}  // namespace distil_xlstm::distill
