// Documents that a model writes: batched sampling, each document with a random stream of its own, so that the result depends on
// the seed alone, not on the batch or on interruptions.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "generate/synthesize_options.h"
#include "nn/language_model.h"

namespace distil_xlstm::generate {

// Documents first_document .. first_document + batch_size - 1, in that order. Throws Interrupted between tokens after a signal.
std::vector<std::vector<int32_t>> synthesize_batch(nn::LanguageModel& model, const SynthesizeOptions& options, uint64_t first_document);

}  // namespace distil_xlstm::generate
