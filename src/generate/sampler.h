// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/error.h"
#include "base/random.h"

namespace distil_xlstm::generate {

// No token can be chosen. Who knows the model says why (nn/finite.h).
class NotFiniteLogits : public Error {
 public:
  using Error::Error;
};

// Applied in this order, as transformers' processors: repetition penalty, temperature, top-k, top-p, min-p.
struct SamplingOptions {
  double temperature = 0.8;         // 0: greedy (the lowest id among equal logits)
  int64_t top_k = 0;                // 0: all
  double top_p = 1.0;               // smallest set of tokens whose probability reaches it; 1: all
  double min_p = 0.0;               // drops tokens below min_p times the likeliest one's probability
  double repetition_penalty = 1.0;  // divides positive logits of seen tokens, multiplies negative ones
  uint64_t seed = 0;
};

// Throws ValueError that names the option and its range.
void check(const SamplingOptions& options);

// One sampler a sequence: its own random stream, so that results do not depend on what else is in a batch.
class Sampler {
 public:
  // `left_out`: ids that are never chosen, ascending (rows_without_token).
  explicit Sampler(const SamplingOptions& options, uint64_t stream = 0, std::span<const int32_t> left_out = {});
  // `logits`: one float a row of the head; `context`: tokens so far (for the repetition penalty). Throws NotFiniteLogits when one of them
  // is not a number, or the greatest is infinite.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> context);

 private:
  SamplingOptions options_;
  Random random_;
  std::vector<int32_t> left_out_;
  std::vector<float> changed_;  // the logits, where some are penalized or left out
  std::vector<std::pair<double, int32_t>> candidates_;
};

}  // namespace distil_xlstm::generate
