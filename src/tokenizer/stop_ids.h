// The ids that end a text.
#pragma once

#include <cstdint>
#include <vector>

#include "base/json.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm {

// eos_token_id of generation_config.json and of config.json, and the tokenizer's EOS; sorted. Throws DataError that names file and key
// for anything but an id of the vocabulary, a list of them, or null.
std::vector<int32_t> stop_ids(const io::ModelFiles& files, const Tokenizer& tokenizer);

// generation_config.json for a model with these stop ids, in the form of Hugging Face.
json generation_config(const std::vector<int32_t>& stop_ids, const Tokenizer& tokenizer);

}  // namespace distil_xlstm
