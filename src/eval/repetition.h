// How much a text repeats itself.
#pragma once

#include <cstdint>
#include <span>

namespace distil_xlstm::eval {

// Share of a text's n-grams that are not its first of their kind: 1 - distinct / all. 0 of a text that is shorter than one.
double repeated_ngrams(std::span<const int32_t> tokens, size_t n = 4);

}  // namespace distil_xlstm::eval
