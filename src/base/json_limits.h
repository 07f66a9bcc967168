// What bounds the reading of JSON and CBOR that others wrote.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"

namespace distil_xlstm {

// Levels of lists and objects inside each other that a text may have: trees are copied, compared and written by recursion. The readers
// behind tokenizers and chat templates take 127, so that what has passed here passes there with a few levels around it.
inline constexpr size_t kMaxJsonDepth = 100;

// Byte of the bracket that opens one level too many. Every reader of JSON asks this first (parse_json does), or uses sax_parse.
std::optional<size_t> json_too_deep_at(std::string_view text);

// Keys of an object that keeps their order: at each insertion it looks through all of them, so that time grows with their square.
inline constexpr size_t kMaxOrderedKeys = 20000;

// Byte of the comma before one key too many. parse_json asks this.
std::optional<size_t> json_too_wide_at(std::string_view text);

// parse_json for objects of any number of keys, in no order. (The library's parser with a callback
// looks through a whole list or object after each of its members: it is not used.)
using UnorderedJson = nlohmann::json;
UnorderedJson parse_unordered_json(std::string_view text, std::string_view where);

// A key of the outermost object that stands there twice: two readers would see two different files. `text` is valid JSON.
std::optional<std::string> repeated_key(std::string_view text);

// CBOR, which keeps the program's own unfinished work: a discarded value where it is broken or too deep.
json parse_cbor(std::string_view bytes);

}  // namespace distil_xlstm
