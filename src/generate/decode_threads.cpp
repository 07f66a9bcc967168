#include "generate/decode_threads.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "base/log.h"

namespace distil_xlstm::generate {
namespace {

constexpr int64_t kWarmUpSteps = 2;            // they touch memory for the first time
constexpr int64_t kTrialSteps = 4;             // at least, and
constexpr double kTrialSeconds = 0.03;         // several slices of a scheduler, so that another program's share shows
constexpr double kSettledSeconds = 2;          // between looks at the neighbours
constexpr double kNoSlower = 1.02;             // of two that are as fast the one with fewer threads
constexpr double kFaster = 0.95;               // what more threads must gain
constexpr double kHopeless = 1.5;              // a trial that is so much slower ends early
constexpr int64_t kBytesPerThread = 16 << 20;  // of weights: a thread's first share

// What a step reads: all weights, of the embedding a row.
int64_t bytes_of_step(const nn::LanguageModel& model) {
  int64_t bytes = model.head_weight().nbytes();
  model.for_each_weight([&](const std::string&, const Tensor& weight) {
    if (weight.size(0) != model.vocab_size()) bytes += weight.nbytes();
  });
  return bytes;
}

bool keeps_its_bits(const nn::LanguageModel& model) {
  const std::string precision = model.precision();
  return model.device().is_cpu() && (precision == "fp32" || precision == "fp64") && !at::in_parallel_region();
}

}  // namespace

ThreadChooser::ThreadChooser(int max_threads, int first)
    : max_threads_(std::max(max_threads, 1)), threads_(std::clamp(first, 1, max_threads_)), first_(threads_) {}

void ThreadChooser::begin(State state, int threads) {
  state_ = state;
  threads_ = threads;
  steps_ = 0;
  seconds_ = 0;
}

void ThreadChooser::begin_going_up() {
  if (best_ == max_threads_) return settle();
  begin(State::going_up, std::min(2 * best_, max_threads_));
}

void ThreadChooser::settle() {
  begin(State::settled, best_);
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
  switch (state_) {
    case State::warming_up:
      if (steps_ >= kWarmUpSteps) begin(State::first, first_);
      return;
    case State::first:
    case State::going_down:
    case State::going_up:
    case State::looking:
      if (steps_ < kTrialSteps) return;
      if (seconds_ >= kTrialSeconds || (best_ > 0 && mean > kHopeless * best_mean_)) end_trial(mean);
      return;
    case State::settled:
      if (seconds_ < kSettledSeconds) return;
      best_mean_ = mean;  // as it is now: other programs come and go
      looks_up_ = best_ == 1 || (best_ < max_threads_ && !looks_up_);
      begin(State::looking, looks_up_ ? std::min(2 * best_, max_threads_) : best_ / 2);
      return;
  }
}

DecodeThreads::DecodeThreads(const nn::LanguageModel& model)
    : is_used_(keeps_its_bits(model)),
      before_(at::get_num_threads()),
      chooser_(before_, is_used_ ? static_cast<int>(std::min<int64_t>(bytes_of_step(model) / kBytesPerThread, before_)) : before_) {}

DecodeThreads::~DecodeThreads() {
  if (is_used_ && at::get_num_threads() != before_) at::set_num_threads(before_);
}

void DecodeThreads::start() {
  if (!is_used_) return;
  if (at::get_num_threads() != chooser_.threads()) at::set_num_threads(chooser_.threads());
  started_ = monotonic_seconds();
}

void DecodeThreads::stop() {
  if (is_used_ && started_ > 0) chooser_.record(monotonic_seconds() - started_);
}

}  // namespace distil_xlstm::generate
