// What stands around the ids of a text, the same in training, evaluation and use: what the tokenizer's post-processor puts there, as
// AutoTokenizer of the pinned `transformers` does (which ignores add_bos_token and add_eos_token beside a tokenizer.json).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace distil_xlstm {

struct DocumentBorders {
  std::vector<int32_t> begin;  // the post-processor's prefix
  std::vector<int32_t> end;    // its suffix, then the end that was asked for unless the suffix ends with that one
};

DocumentBorders document_borders(const std::vector<int32_t>& prefix, const std::vector<int32_t>& suffix, std::optional<int32_t> end_id);
DocumentBorders document_borders(const Tokenizer& tokenizer, std::optional<int32_t> end_id);

// The id that the setting document_end names: "none" | "eos" | TOKEN. Throws ConfigError for a token that the tokenizer does not have.
std::optional<int32_t> document_end_id(const std::string& document_end, std::optional<int32_t> eos_id,
                                       const std::function<std::optional<int32_t>(std::string_view)>& token_id);
std::optional<int32_t> document_end_id(const std::string& document_end, const Tokenizer& tokenizer);

// A text to go on with: the prefix and its ids, without the suffix. A text that begins with the prefix gets no second one.
std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, std::string_view text);

// Whether a text's ids begin with the prefix as they stand: as a document it gets a second one, as in `transformers`.
bool begins_with(std::span<const int32_t> ids, std::span<const int32_t> prefix);
// One warning of `count` such texts, where there are any; `where` says what was read.
void warn_of_repeated_prefix(std::string_view where, std::span<const int32_t> prefix, uint64_t count);

}  // namespace distil_xlstm
