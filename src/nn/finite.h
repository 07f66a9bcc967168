// Where a model's numbers stop being finite, for messages.
#pragma once

#include <string>
#include <string_view>

#include "nn/language_model.h"

namespace distil_xlstm::nn {

struct NonFinite {
  std::string part;       // the first whose output is not finite ("model.layers.3"); "": none
  std::string weight;     // of that part, the first that is not finite ("model.layers.3.mlp.down_proj.weight"); "": all are
  std::string precision;  // of the model
};

// Runs the model once more on these tokens, part by part.
NonFinite find_non_finite(LanguageModel& model, const Tensor& tokens_BS, const Tensor& is_start_BS = {});

// "m in fp16: the output of model.layers.3 is not finite"; `name` is the model's for people.
std::string description(const NonFinite& found, std::string_view name);
// "its values outgrow fp16: set --precision to bf16 or fp32"; `key` is what sets the model's precision.
std::string remedy(const NonFinite& found, std::string_view key);

// All of it: description and remedy.
std::string why_not_finite(LanguageModel& model, std::string_view name, std::string_view key, const Tensor& tokens_BS,
                           const Tensor& is_start_BS = {});

}  // namespace distil_xlstm::nn
