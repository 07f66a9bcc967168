#include "io/model_files_tokenizer.h"

#include <array>
#include <utility>

#include "base/foreign_content.h"

#include "io/run_files.h"

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

// Some files hold several templates by name: the one for chat is called "default".
json default_template(const json& chat_template, const std::string& where) {
  if (!chat_template.is_array()) return chat_template;
  for (const json& named : chat_template) {
    if (named.is_object() && get_or<std::string>(named, "name", "", where) == "default")
      return require<std::string>(named, "template", where);
  }
  throw DataError("{}: chat_template is a list without one named 'default'", where);
}

json read_tokenizer_config(const fs::path& directory) {
  const fs::path path = directory / "tokenizer_config.json";
  json config = read_object_if_there(path);
  const json special_tokens = read_object_if_there(directory / "special_tokens_map.json");
  for (const char* key : kSpecialTokens) {
    if (!config.contains(key) && special_tokens.contains(key)) config[key] = special_tokens[key];
    if (config.contains(key)) config[key] = token_text(config[key]);
  }
  if (config.contains("chat_template")) config["chat_template"] = default_template(config["chat_template"], path.string());
  if (const fs::path jinja = directory / "chat_template.jinja"; fs::exists(jinja)) {
    const std::string source = read_file(jinja);
    throw_if_foreign(source, jinja.string(), ContentKind::text);
    config["chat_template"] = source;
  }
  return config;
}

}  // namespace

std::optional<TokenizerFiles> read_tokenizer_files(const std::vector<fs::path>& directories) {
  for (const fs::path& directory : directories) {
    const fs::path path = directory / "tokenizer.json";
    if (!fs::exists(path)) continue;
    check_run_files(directory, {"tokenizer.json", "tokenizer_config.json"});
    std::string tokenizer = read_file(path);
    throw_if_foreign(tokenizer, path.string(), ContentKind::json);
    return TokenizerFiles{
        .tokenizer_json = std::move(tokenizer), .tokenizer_config = read_tokenizer_config(directory), .origin = path.string()};
  }
  return std::nullopt;
}

}  // namespace distil_xlstm::io
