// Documents that a model writes: batched sampling, each document with a random stream of its own, so that the result depends on
// the seed alone, not on the batch or on interruptions.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "generate/sampler.h"
#include "nn/language_model.h"

namespace distil_xlstm::generate {

struct SynthesizeOptions {
  SamplingOptions sampling{.temperature = 1.0};
  std::vector<int32_t> prompt;        // what every document begins with; at least one token
  std::vector<int32_t> stop_ids;      // end a document; not part of it
  int64_t max_document_tokens = 512;  // prompt included
  int64_t batch_size = 64;
};

// Documents first_document .. first_document + batch_size - 1, in that order. Throws Interrupted between tokens after a signal.
std::vector<std::vector<int32_t>> synthesize_batch(nn::LanguageModel& model, const SynthesizeOptions& options, uint64_t first_document);

}  // namespace distil_xlstm::generate
