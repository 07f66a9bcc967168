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

std::optional<std::string> document_beginning(const Tokenizer& tokenizer, std::span<const int32_t> tokens, size_t count) {
  const size_t before = tokenizer.prefix_ids().size(), around = before + tokenizer.suffix_ids().size();
  if (tokens.size() < around + count) return std::nullopt;
  const auto own = tokens.subspan(before, tokens.size() - around);
  // Bytes of a character that is not whole are decoded as U+FFFD, and so may those before them be: another text than the document's.
  const std::string whole = tokenizer.decode(own);
  constexpr size_t kMostParts = 3;  // tokens that a character can have without being whole
  for (size_t dropped = 0; dropped <= kMostParts && dropped < count; ++dropped) {
    std::string text = tokenizer.decode(own.first(count - dropped));
    if (whole.starts_with(text)) return text.empty() ? std::nullopt : std::optional(std::move(text));
  }
  if (count <= kMostParts) return std::nullopt;
  return tokenizer.decode(own.first(count));  // of a decoder that writes a token by what follows it
}

}  // namespace distil_xlstm::eval
