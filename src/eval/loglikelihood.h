// How likely a model finds continuations of contexts.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "nn/language_model.h"

namespace distil_xlstm::eval {

struct Request {
  std::vector<int32_t> context, continuation;  // neither is empty
};

struct RequestScore {
  double log_likelihood = 0.0;  // of the continuation, in nats; the sum runs in float64
  bool is_greedy = true;        // every token of it is the most likely one
};

struct LoglikelihoodOptions {
  int64_t max_length = 2048;           // tokens that the model sees at most: of a longer request the first are left out
  int64_t batch_tokens = 4096;         // tokens at a time, one request at least
  std::vector<int32_t> left_out_rows;  // of the head, ascending: as if they were not there
  bool shares_contexts = true;         // a context of several requests is computed once
  std::string model_name = "the model";
};

// In the order of the requests. `progress` gets the number scored so far. Throws ValueError for a continuation longer than max_length,
// Error that names model, precision and layer where a figure is not finite, Interrupted after a signal that a SignalGuard caught.
std::vector<RequestScore> log_likelihoods(nn::LanguageModel& model, std::span<const Request> requests, const LoglikelihoodOptions& options,
                                          const std::function<void(size_t)>& progress = {});

}  // namespace distil_xlstm::eval
