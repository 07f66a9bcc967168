#include "tokenizer/document_borders.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/warn_once.h"

namespace distil_xlstm {

DocumentBorders document_borders(const std::vector<int32_t>& prefix, const std::vector<int32_t>& suffix, std::optional<int32_t> end_id) {
  DocumentBorders borders{.begin = prefix, .end = suffix};
  if (end_id && (suffix.empty() || suffix.back() != *end_id)) borders.end.push_back(*end_id);
  return borders;
}

DocumentBorders document_borders(const Tokenizer& tokenizer, std::optional<int32_t> end_id) {
  return document_borders(tokenizer.prefix_ids(), tokenizer.suffix_ids(), end_id);
}

std::optional<int32_t> document_end_id(const std::string& document_end, std::optional<int32_t> eos_id,
                                       const std::function<std::optional<int32_t>(std::string_view)>& token_id) {
  if (document_end == "none") return std::nullopt;
  const auto id = document_end == "eos" ? eos_id : token_id(document_end);
  if (!id && document_end == "eos")
    throw ConfigError("document_end = \"eos\", but the tokenizer has no eos_token: name a token of its vocabulary, or \"none\"");
  if (!id)
    throw ConfigError("document_end = \"{}\": no token of the tokenizer; allowed are \"none\", \"eos\" and its tokens", document_end);
  return id;
}

std::optional<int32_t> document_end_id(const std::string& document_end, const Tokenizer& tokenizer) {
  return document_end_id(document_end, tokenizer.eos_id(), [&](std::string_view piece) { return tokenizer.token_id(piece); });
}

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids = tokenizer.encode(text);
  const auto& prefix = tokenizer.prefix_ids();
  if (!begins_with(ids, prefix)) ids.insert(ids.begin(), prefix.begin(), prefix.end());
  return ids;
}

bool begins_with(std::span<const int32_t> ids, std::span<const int32_t> prefix) {
  return !prefix.empty() && ids.size() >= prefix.size() && std::ranges::equal(ids.first(prefix.size()), prefix);
}

void warn_of_repeated_prefix(std::string_view where, std::span<const int32_t> prefix, uint64_t count) {
  if (count == 0) return;
  const std::string texts = count == 1 ? "1 text begins" : fmt::format("{} texts begin", count);
  warn_once(fmt::format("{}: {} with id {}, which the tokenizer puts before every text: it stands there twice, take it out of the text",
                        where, texts, fmt::join(prefix, ", ")));
}

}  // namespace distil_xlstm
