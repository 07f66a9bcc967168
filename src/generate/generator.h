// Text from any language model, token by token: a student with constant state, a teacher with its KV cache.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "generate/sampler.h"
#include "nn/language_model.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::generate {

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_new_tokens = 256;
  std::vector<std::string> stop;  // the text ends before the first of these
  std::vector<int32_t> stop_ids;  // end-of-text tokens; not part of the text
  int64_t prefill_piece = 512;    // prompt tokens at a time
  bool skip_special_tokens = true;
  bool continues_text = true;  // false: an answer, a text of its own whose first piece is decoded as such
};

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

// Ids that end a text: eos_token_id of generation_config.json and config.json, and the tokenizer's EOS.
std::vector<int32_t> end_of_text_ids(const io::ModelFiles& files, const Tokenizer& tokenizer);

}  // namespace distil_xlstm::generate
