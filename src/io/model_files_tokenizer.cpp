#include "io/model_files_tokenizer.h"

#include <array>

namespace distil_xlstm::io {
namespace {

constexpr std::array<const char*, 4> kSpecialTokens = {"bos_token", "eos_token", "unk_token", "pad_token"};

json read_object_if_there(const fs::path& path) {
  if (!fs::exists(path)) return json::object();
  json value = read_json(path);
  if (!value.is_object()) throw DataError("{}: not a JSON object", path.string());
  return value;
}

// {"content": "<s>", ...} -> "<s>"
json token_text(const json& token) {
  return token.is_object() && token.contains("content") ? token["content"] : token;
}

json read_tokenizer_config(const fs::path& directory) {
  const fs::path path = directory / "tokenizer_config.json";
  json config = read_object_if_there(path);
  const json special_tokens = read_object_if_there(directory / "special_tokens_map.json");
  for (const char* key : kSpecialTokens) {
    if (!config.contains(key) && special_tokens.contains(key)) config[key] = special_tokens[key];
    if (config.contains(key)) config[key] = token_text(config[key]);
  }
  if (const fs::path jinja = directory / "chat_template.jinja"; fs::exists(jinja)) config["chat_template"] = read_file(jinja);
  return config;
}

}  // namespace

std::optional<TokenizerFiles> read_tokenizer_files(const std::vector<fs::path>& directories) {
  for (const fs::path& directory : directories) {
    const fs::path path = directory / "tokenizer.json";
    if (!fs::exists(path)) continue;
    return TokenizerFiles{.tokenizer_json = read_file(path), .tokenizer_config = read_tokenizer_config(directory), .origin = path.string()};
  }
  return std::nullopt;
}

}  // namespace distil_xlstm::io
