// The tokenizer of anything that names one.
#pragma once

#include <string>

#include "io/model_files.h"

namespace distil_xlstm::data {

// `name`: what --model takes, or a tokenizer.json, or a directory with one (weights are not looked at then). Throws ConfigError
// when there is no tokenizer.
io::TokenizerFiles open_tokenizer_files(const std::string& name);

}  // namespace distil_xlstm::data
