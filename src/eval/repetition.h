// How much a text repeats itself.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "tokenizer/tokenizer.h"

namespace distil_xlstm::eval {

// Share of a text's n-grams that are not its first of their kind: 1 - distinct / all. 0 of a text that is shorter than one.
double repeated_ngrams(std::span<const int32_t> tokens, size_t n = 4);

// The text of a document's first `count` tokens, without what the tokenizer puts around it (`tokens` have that), up to the last whole
// character. None where it has fewer tokens, or no whole character within them.
std::optional<std::string> document_beginning(const Tokenizer& tokenizer, std::span<const int32_t> tokens, size_t count);

}  // namespace distil_xlstm::eval
