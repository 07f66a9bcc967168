// What a run writes as it goes: metrics, the progress line, checkpoints.
#pragma once

#include <optional>
#include <string>

#include "base/log.h"
#include "base/ranks.h"
#include "config/run_config.h"
#include "student/student.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/run_length.h"
#include "train/run_state.h"
#include "train/step.h"

namespace distil_xlstm::train {

// Whether what is done every so many steps is done at this one; 0: never.
inline bool is_due(int64_t step, int64_t every) {
  return every > 0 && step % every == 0;
}

class Recorder {
 public:
  struct Parts {
    const config::RunConfig& config;
    const student::Student& student;
    fs::path run;  // its directory, which exists
    RunLength length;
    Ranks ranks;  // of which one writes: on the others nothing happens
  };

  // Of a new run; or of one that goes on after the checkpoint of `step`, whose metrics ended at `position`.
  explicit Recorder(Parts parts);
  Recorder(Parts parts, const MetricsPosition& position, int64_t step);

  // All throw IoError where nothing can be written or the run's directory is gone. `state` is that after the step.
  void step(const StepResult& result, const RunState& state, double seconds);
  // `message` is the warning, `result.plan` that of the step that was not taken.
  void skipped(const StepResult& result, const RunState& state, const std::string& message);
  void validation(const eval::ValidationResult& result, const RunState& state);
  // Ends the line with the last good step, where there was one.
  void end_progress_line(const RunState& state);
  // `content.trainer` gains the place in the metrics.
  void checkpoint(const RunState& state, CheckpointContent content);

  // Throws IoError when the run's directory was removed, renamed or replaced since.
  void check_in_place() const;

 private:
  void write_step(const StepResult& result, const RunState& state);
  [[nodiscard]] std::string progress_text(const StepResult& result, const RunState& state) const;

  Parts in_;
  std::optional<MetricsLog> metrics_;  // of the rank that writes
  ProgressLine progress_;
  std::optional<StepResult> last_good_;
  int64_t interval_tokens_ = 0;  // since the last logged step
  double interval_seconds_ = 0.0, tokens_per_second_ = 0.0;
};

}  // namespace distil_xlstm::train
