// How many threads decode: as many as are fastest now, found by trying. Reading the weights once a token is bound by memory, which few
// threads fill, and a thread that shares its core with another program holds up all others at each product. The number changes no bit of a
// model in float32 or float64 (ops/linear.h); others keep all threads.
#pragma once

#include <cstdint>

#include "nn/language_model.h"

namespace distil_xlstm::generate {

// Times the steps it is told of and says how many threads the next one gets: `first`, then half as many while that is no slower, or else
// twice as many while that is faster, then now and again the neighbours of what was best.
class ThreadChooser {
 public:
  ThreadChooser(int max_threads, int first);

  [[nodiscard]] int threads() const { return threads_; }
  // A step with threads() took so long.
  void record(double seconds);

 private:
  enum class State { warming_up, first, going_down, going_up, settled, looking };

  void begin(State state, int threads);
  void begin_going_up();
  void end_trial(double mean);
  void settle();

  int max_threads_;
  int threads_, first_;
  State state_ = State::warming_up;
  int best_ = 0;  // threads
  double best_mean_ = 0;
  bool looks_up_ = false;  // at more threads, else at fewer
  int64_t steps_ = 0;      // of the trial, or since it settled
  double seconds_ = 0;
};

// Sets LibTorch's threads from step to step, and back at its end. Does nothing where the model is not on a CPU or its bits would change.
class DecodeThreads {
 public:
  explicit DecodeThreads(const nn::LanguageModel& model);
  ~DecodeThreads();
  DecodeThreads(const DecodeThreads&) = delete;
  DecodeThreads& operator=(const DecodeThreads&) = delete;

  // Around the work of a step.
  void start();
  void stop();

 private:
  bool is_used_;
  int before_;
  ThreadChooser chooser_;
  double started_ = 0;
};

}  // namespace distil_xlstm::generate
