// The tokenizer files of a directory.
#pragma once

#include <optional>
#include <vector>

#include "io/model_files.h"

namespace distil_xlstm::io {

// From the first of `directories` that has a tokenizer.json; nullopt when none has. tokenizer_config.json, chat_template.jinja and
// special_tokens_map.json beside it are folded into tokenizer_config: special tokens as plain strings, chat_template as one string.
std::optional<TokenizerFiles> read_tokenizer_files(const std::vector<fs::path>& directories);

}  // namespace distil_xlstm::io
