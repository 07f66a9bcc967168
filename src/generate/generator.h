// Text from any language model, token by token: a student with constant state, a teacher with its KV cache.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "generate/generate_options.h"
#include "nn/language_model.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::generate {

struct GenerateResult {
  std::vector<int32_t> tokens;  // generated, without the stop id
  std::string text;
  std::string finish_reason;  // "stop", "length", "interrupted"
  int64_t prompt_tokens = 0;
  double prompt_seconds = 0.0, decode_seconds = 0.0;
  int64_t state_bytes = 0;  // of the model's state at the end
};

// Appends to `prompt` (ids, BOS included where wanted); `on_text` gets text as soon as it is certain. Throws ValueError for an empty
// prompt.
GenerateResult generate(nn::LanguageModel& model, const Tokenizer& tokenizer, const std::vector<int32_t>& prompt,
                        const GenerateOptions& options, const std::function<void(const std::string&)>& on_text = {});

}  // namespace distil_xlstm::generate
