// How many threads decode (base/thread_chooser.h). Reading the weights once a token is bound by memory, which few threads fill. The number
// changes no bit of a model in float32 or float64 (ops/linear.h); others keep all threads.
#pragma once

#include "base/thread_chooser.h"
#include "nn/language_model.h"

namespace distil_xlstm::generate {

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
