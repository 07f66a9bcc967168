// Annealing of alpha, temperature and beta over optimizer steps (docs/mathematics.md 7, [P 30-35]).
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"
#include "config/run_config.h"

namespace distil_xlstm::distill {

// v(t) for one quantity, rising or falling: v_f + (v_0 - v_f) / (1 + ln(1 + t)) for the delta schedules. "delta-code" counts t from the
// epoch's beginning, all others from the run's. "linear" and "cosine" reach final at the last of total_steps.
class Schedule {
 public:
  // Throws ConfigError (`key` names the setting: "distill.alpha").
  Schedule(const config::ScheduleSettings& settings, int64_t total_steps, const std::string& key);
  // Value before 0-based optimizer step k.
  [[nodiscard]] double value(int64_t step) const;
  // Called once at an epoch's end, with the number of optimizer steps done: v_0 of a delta schedule moves towards final, by decay * v_0
  // ("multiply") or decay ("subtract") and never past it; delta-code's t starts again.
  void end_epoch(int64_t steps_done);
  [[nodiscard]] json state() const;
  // Throws DataError when the state is of another schedule.
  void restore(const json& state);

 private:
  [[nodiscard]] bool is_delta() const;

  config::ScheduleSettings settings_;
  std::string key_;
  int64_t total_steps_;
  double start_;             // v_0 now
  int64_t epoch_begin_ = 0;  // first step of this epoch
};

}  // namespace distil_xlstm::distill
