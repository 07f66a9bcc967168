// How many threads share work: as many as are fastest now, found by trying. Where another program has a core, a thread that shares that
// core holds up all others, so that fewer may be faster.
#pragma once

#include <cstdint>

namespace distil_xlstm {

// Times the steps it is told of and says how many threads the next one gets: `first`, then half as many while that is no slower, or else
// twice as many while that is faster. It looks at the neighbours of what was best every `look_seconds`, and as soon as steps take longer.
class ThreadChooser {
 public:
  ThreadChooser(int max_threads, int first, double look_seconds);

  [[nodiscard]] int max_threads() const { return max_threads_; }
  [[nodiscard]] int threads() const { return threads_; }
  // A step with threads() took so long.
  void record(double seconds);

 private:
  enum class State { warming_up, first, going_down, going_up, settled, looking };

  void begin(State state, int threads);
  void begin_going_up();
  void look();
  void end_trial(double mean);
  void settle();
  [[nodiscard]] bool is_trial_over(double mean) const;

  int max_threads_;
  int threads_, first_;
  double look_seconds_;
  State state_ = State::warming_up;
  int best_ = 0;  // threads
  double best_mean_ = 0;
  bool looks_up_ = false;  // at more threads, else at fewer
  int64_t steps_ = 0;      // of the trial, or since it settled
  double seconds_ = 0;
  double recent_ = 0, recent_steps_ = 0;  // of the last moments since it settled
};

}  // namespace distil_xlstm
