// --vocabulary of `eval`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "load/model.h"

namespace distil_xlstm::commands {

// The rows of a model's head that no token has, where `vocabulary` ("model", "tokenizer") leaves them out; else none. Tells how many there
// are.
std::vector<int32_t> choose_left_out_rows(const load::LoadedModel& model, const Tokenizer& tokenizer, const std::string& name,
                                          const std::string& vocabulary);

}  // namespace distil_xlstm::commands
