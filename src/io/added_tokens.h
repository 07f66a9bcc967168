// Tokens that the files beside a tokenizer.json add to it, by the rules of the pinned `transformers`.
#pragma once

#include <array>
#include <string>

#include "base/json.h"

namespace distil_xlstm::io {

// The keys that hold one special token each.
inline constexpr std::array<const char*, 7> kNamedTokens = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                            "pad_token", "cls_token", "mask_token"};

// The text of a token that is written as text, as {"content": text, ...}, or as null (""). Throws DataError for anything else.
std::string token_text(const json& token, const std::string& where);

// special_tokens_map.json merged into tokenizer_config.json: it counts only where that has no added_tokens_decoder, and then goes first.
void merge_special_tokens(json& tokenizer_config, const json& special_tokens);

// What is to be added, in this order: added_tokens_decoder of tokenizer_config.json (where it is absent added_tokens.json, `added`), then
// the named tokens, then additional_special_tokens or extra_special_tokens. Each as {"token": {content, single_word, lstrip, rstrip,
// normalized, special}, "replaces": whether it changes an added token of tokenizer.json, "id": as the file says, left out where it does
// not}. The next free ids are given in that order, whatever "id" says. Throws DataError that names file and key.
json added_tokens(const json& tokenizer_config, const std::string& config_where, const json& added, const std::string& added_where);

}  // namespace distil_xlstm::io
