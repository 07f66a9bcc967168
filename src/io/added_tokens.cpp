#include "io/added_tokens.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <set>
#include <string_view>

namespace distil_xlstm::io {
namespace {

constexpr const char* kDecoder = "added_tokens_decoder";
constexpr const char* kExtra = "extra_special_tokens";
constexpr const char* kAdditional = "additional_special_tokens";

std::string shown(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

const json* find(const json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

// As Python's AddedToken: what is special is not normalized unless that is said.
json token_object(const json& value, bool is_special_by_default, const std::string& where) {
  const std::string content = token_text(value, where);
  const json flags = value.is_object() ? value : json::object();
  const bool is_special = get_or(flags, "special", is_special_by_default, where);
  return {{"content", content},
          {"single_word", get_or(flags, "single_word", false, where)},
          {"lstrip", get_or(flags, "lstrip", false, where)},
          {"rstrip", get_or(flags, "rstrip", false, where)},
          {"normalized", get_or(flags, "normalized", !is_special, where)},
          {"special", is_special}};
}

int64_t decoder_id(const std::string& key, const std::string& where) {
  int64_t id = -1;
  const char* end = key.data() + key.size();
  if (const auto [at, error] = std::from_chars(key.data(), end, id); error != std::errc() || at != end || id < 0)
    throw DataError("{}: {} has the key '{}': each must be a token's id", where, kDecoder, key);
  return id;
}

class TokenList {
 public:
  void add(json token, bool replaces, int64_t id = -1) {
    const auto content = token["content"].get<std::string>();
    if (content.empty() || !contents_.insert(content).second) return;
    json entry = {{"token", std::move(token)}, {"replaces", replaces}};
    if (id >= 0) entry["id"] = id;
    list_.push_back(std::move(entry));
  }
  [[nodiscard]] const json& list() const { return list_; }

 private:
  json list_ = json::array();
  std::set<std::string> contents_;
};

// Tokens with a key of their own: the usual names, then those of one model (image_token and its like).
std::vector<json> named_tokens(const json& config, const std::string& where) {
  std::vector<json> tokens;
  const auto add = [&](const std::string& key, const json& value) {
    json token = token_object(value, true, fmt::format("{}: {}", where, key));
    token["special"] = true;
    tokens.push_back(std::move(token));
  };
  for (const char* key : kNamedTokens) {
    if (const json* value = find(config, key)) add(key, *value);
  }
  const auto is_usual = [](std::string_view key) { return std::ranges::find(kNamedTokens, key) != kNamedTokens.end(); };
  for (const auto& [key, value] : config.items()) {
    const bool is_token = value.is_string() || (value.is_object() && value.contains("content"));
    if (key.ends_with("_token") && is_token && !is_usual(key)) add(key, value);
  }
  if (const json* extra = find(config, kExtra); extra != nullptr && extra->is_object()) {
    for (const auto& [key, value] : extra->items()) add(fmt::format("{}.{}", kExtra, key), value);
  }
  return tokens;
}

std::vector<json> extra_tokens(const json& config, const std::string& where) {
  const json* extra = find(config, kExtra);
  const char* key = kExtra;
  if (extra == nullptr || (extra->is_structured() && extra->empty())) {
    extra = find(config, kAdditional);
    key = kAdditional;
  }
  std::vector<json> tokens;
  if (extra == nullptr || (extra->is_object() && key == kExtra)) return tokens;  // an object: they have names
  if (!extra->is_array()) throw DataError("{}: {} must be a list of tokens, it is {}", where, key, shown(*extra));
  for (const json& token : *extra) tokens.push_back(token_object(token, true, fmt::format("{}: {}", where, key)));
  return tokens;
}

bool has_content(const std::vector<json>& tokens, const json& content) {
  return std::ranges::any_of(tokens, [&](const json& token) { return token["content"] == content; });
}

void add_decoder(TokenList& list, const json& decoder, const std::vector<json>& named, const std::string& where) {
  if (!decoder.is_object()) throw DataError("{}: {} must be an object of ids and tokens, it is {}", where, kDecoder, shown(decoder));
  std::map<int64_t, json> by_id;
  for (const auto& [key, value] : decoder.items()) {
    if (!value.is_object()) throw DataError("{}: {}.{} must be an object with 'content', it is {}", where, kDecoder, key, shown(value));
    by_id[decoder_id(key, where)] = token_object(value, false, fmt::format("{}: {}.{}", where, kDecoder, key));
  }
  for (auto& [id, token] : by_id) {
    if (has_content(named, token["content"])) token["special"] = true;
    list.add(token, true, id);
  }
}

void add_listed(TokenList& list, const json& added, const std::vector<json>& named, const std::vector<json>& extra,
                const std::string& where) {
  std::map<int64_t, json> by_id;
  for (const auto& [content, id] : added.items()) {
    const bool is_special = has_content(named, content) || has_content(extra, content);
    by_id[require<uint32_t>(added, content, where)] = token_object(content, is_special, where);
  }
  for (const auto& [id, token] : by_id) list.add(token, false, id);
}

}  // namespace

std::string token_text(const json& token, const std::string& where) {
  if (token.is_null()) return "";
  if (token.is_string()) return token.get<std::string>();
  if (token.is_object()) {
    if (const auto content = token.find("content"); content != token.end() && content->is_string()) return content->get<std::string>();
  }
  throw DataError("{} is {}: it must be a text, an object with 'content', or null", where, shown(token));
}

void merge_special_tokens(json& tokenizer_config, const json& special_tokens) {
  if (tokenizer_config.contains(kDecoder)) return;
  const auto has_tokens = [&](const char* key) {
    const json* value = find(tokenizer_config, key);
    return value != nullptr && !value->empty();
  };
  const bool has_extra = has_tokens(kExtra) || has_tokens(kAdditional);
  for (const auto& [key, value] : special_tokens.items()) {
    if ((key == kAdditional || key == kExtra) && has_extra) continue;
    tokenizer_config[key] = value;
  }
}

json added_tokens(const json& tokenizer_config, const std::string& config_where, const json& added, const std::string& added_where) {
  const std::vector<json> named = named_tokens(tokenizer_config, config_where);
  const std::vector<json> extra = extra_tokens(tokenizer_config, config_where);
  TokenList list;
  if (const json* decoder = find(tokenizer_config, kDecoder)) {
    add_decoder(list, *decoder, named, config_where);
  } else {
    add_listed(list, added, named, extra, added_where);
  }
  for (const json& token : named) list.add(token, false);
  for (const json& token : extra) list.add(token, false);
  return list.list();
}

}  // namespace distil_xlstm::io
