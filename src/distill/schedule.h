// Annealing of alpha, temperature and beta over optimizer steps (docs/mathematics.md 7, [P 30-35]), by the formula that a name stands for.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "config/run_config.h"

namespace distil_xlstm::distill {

// What a formula knows before an optimizer step.
struct SchedulePoint {
  double start = 0.0, final = 0.0;  // v_0 as it is now, v_f
  int64_t step = 0;                 // 0-based, from the run's beginning, or the epoch's (counts_in_epoch)
  double progress = 0.0;            // of the run: 0 at its first step, 1 at its last
};

struct ScheduleKind {
  std::function<double(const SchedulePoint&)> value;
  bool needs_length = false;     // it uses `progress`: refused where the number of steps is not known
  bool counts_in_epoch = false;  // `step` begins anew with each epoch
  bool start_decays = false;     // at an epoch's end, start moves towards final by the setting `decay`
};

// Adds a schedule beside those of the program. Throws ValueError when the name is taken. Not while runs go on on other threads.
void add_schedule(const std::string& name, ScheduleKind kind);
std::vector<std::string> schedule_names();

// Throws ConfigError where there is none of this name; `key` is the group: "distill.alpha".
void check_schedule(const std::string& name, const std::string& key);
// That alpha, temperature and beta name schedules, whether the method uses them or not. Throws ConfigError.
void check_schedules(const config::DistillSettings& settings);
// Whether values change with where epochs end.
bool depends_on_epochs(const config::ScheduleSettings& settings);

// v(t) for one quantity, rising or falling.
class Schedule {
 public:
  // Throws ConfigError (`key` names the setting: "distill.alpha").
  Schedule(const config::ScheduleSettings& settings, int64_t total_steps, const std::string& key);
  // Value before 0-based optimizer step k.
  [[nodiscard]] double value(int64_t step) const;
  // Called once at an epoch's end, with the number of optimizer steps done: a start that decays moves towards final, by decay * v_0
  // ("multiply") or decay ("subtract") and never past it.
  void end_epoch(int64_t steps_done);
  [[nodiscard]] json state() const;
  // Throws DataError when the state is of another schedule.
  void restore(const json& state);

 private:
  ScheduleKind kind_;
  config::ScheduleSettings settings_;
  std::string key_;
  int64_t total_steps_;
  double start_;             // v_0 now
  int64_t epoch_begin_ = 0;  // first step of this epoch
};

}  // namespace distil_xlstm::distill
