#include "eval/repetition.h"

#include <algorithm>
#include <set>

#include "base/error.h"

namespace distil_xlstm::eval {

double repeated_ngrams(std::span<const int32_t> tokens, size_t n) {
  if (n == 0) throw ValueError("repeated_ngrams: n = 0: must be at least 1");
  if (tokens.size() < n) return 0.0;
  const auto before = [](std::span<const int32_t> a, std::span<const int32_t> b) { return std::ranges::lexicographical_compare(a, b); };
  std::set<std::span<const int32_t>, decltype(before)> kinds(before);
  const size_t count = tokens.size() - n + 1;
  for (size_t at = 0; at < count; ++at) kinds.insert(tokens.subspan(at, n));
  return 1.0 - static_cast<double>(kinds.size()) / static_cast<double>(count);
}

}  // namespace distil_xlstm::eval
