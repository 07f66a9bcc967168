// Annealing of alpha, temperature and beta over optimizer steps (distillation spec section 3, [P 30-35]).
#pragma once

#include <cstdint>

#include "base/json.h"
#include "config/run_config.h"

namespace distil_xlstm::distill {

// v(t) for one quantity. Rising and falling; "delta-code" counts t from the epoch's beginning, all others from the run's.
class Schedule {
 public:
  // `total_steps` is needed by "linear" and "cosine" (they end at final there). Throws ConfigError (`key` names the setting).
  Schedule(const config::ScheduleSettings& settings, int64_t total_steps, const std::string& key);
  // Value at 0-based optimizer step k.
  [[nodiscard]] double value(int64_t step) const;
  // Called once at an epoch's end, with the number of optimizer steps done: v_0 decays, delta-code's t starts again.
  void end_epoch(int64_t step);
  [[nodiscard]] json state() const;
  void restore(const json& state);

 private:
  config::ScheduleSettings settings_;
  int64_t total_steps_;
  double start_;             // v_0 now
  int64_t epoch_begin_ = 0;  // first step of this epoch
};

}  // namespace distil_xlstm::distill
