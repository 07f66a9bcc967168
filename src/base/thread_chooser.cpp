#include "base/thread_chooser.h"

#include <algorithm>

namespace distil_xlstm {
namespace {

constexpr int64_t kWarmUpSteps = 2;     // they touch memory for the first time
constexpr int64_t kTrialSteps = 4;      // at least, and
constexpr double kTrialSeconds = 0.03;  // several slices of a scheduler, so that another program's share shows
constexpr double kNoSlower = 1.02;      // of two that are as fast the one with fewer threads
constexpr double kFaster = 0.95;        // what more threads must gain
constexpr double kHopeless = 1.5;       // a trial that is so much slower ends early
constexpr double kRecentSeconds = 0.5;  // whose mean,
constexpr double kMuchSlower = 1.3;     // so much above that of the choice, says that something has changed

}  // namespace

ThreadChooser::ThreadChooser(int max_threads, int first, double look_seconds)
    : max_threads_(std::max(max_threads, 1)), threads_(std::clamp(first, 1, max_threads_)), first_(threads_), look_seconds_(look_seconds) {}

void ThreadChooser::begin(State state, int threads) {
  state_ = state;
  threads_ = threads;
  steps_ = 0;
  seconds_ = recent_ = recent_steps_ = 0;
}

void ThreadChooser::begin_going_up() {
  if (best_ == max_threads_) return settle();
  begin(State::going_up, std::min(2 * best_, max_threads_));
}

void ThreadChooser::settle() {
  begin(State::settled, best_);
}

void ThreadChooser::look() {
  looks_up_ = best_ == 1 || (best_ < max_threads_ && !looks_up_);
  begin(State::looking, looks_up_ ? std::min(2 * best_, max_threads_) : best_ / 2);
}

bool ThreadChooser::is_trial_over(double mean) const {
  if (seconds_ < kTrialSeconds) return best_ > 0 && steps_ >= kTrialSteps && mean > kHopeless * best_mean_;
  return steps_ >= kTrialSteps || (best_ > 0 && mean > kHopeless * best_mean_);
}

void ThreadChooser::end_trial(double mean) {
  const bool is_first = best_ == 0;
  const bool is_better = is_first || (threads_ < best_ ? mean <= best_mean_ * kNoSlower : mean < best_mean_ * kFaster);
  if (is_better) {
    best_ = threads_;
    best_mean_ = mean;
  }
  if (state_ == State::going_up && is_better) return begin_going_up();
  if (state_ == State::first && threads_ == 1) return begin_going_up();
  if (state_ == State::first || (state_ == State::going_down && is_better && threads_ > 1)) return begin(State::going_down, threads_ / 2);
  if (state_ == State::going_down && best_ == first_) return begin_going_up();
  settle();
}

void ThreadChooser::record(double seconds) {
  if (max_threads_ == 1) return;
  ++steps_;
  seconds_ += seconds;
  const double mean = seconds_ / static_cast<double>(steps_);
  if (state_ == State::warming_up) {
    if (steps_ >= kWarmUpSteps) begin(State::first, first_);
    return;
  }
  if (state_ != State::settled) {
    if (is_trial_over(mean)) end_trial(mean);
    return;
  }
  recent_ += seconds;
  recent_steps_ += 1;
  const bool is_recent_whole = recent_ >= kRecentSeconds && recent_steps_ >= kTrialSteps;
  const double recent_mean = recent_ / recent_steps_;
  const bool has_changed = is_recent_whole && recent_mean > kMuchSlower * best_mean_;
  if (seconds_ >= look_seconds_ || has_changed) {
    best_mean_ = has_changed ? recent_mean : mean;  // as it is now: other programs come and go
    return look();
  }
  if (is_recent_whole) recent_ = recent_steps_ = 0;
}

}  // namespace distil_xlstm
