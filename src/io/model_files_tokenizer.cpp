#include "io/model_files_tokenizer.h"

#include <algorithm>
#include <utility>

#include "base/foreign_content.h"
#include "io/added_tokens.h"
#include "io/run_files.h"

namespace distil_xlstm::io {
namespace {

json read_object_if_there(const fs::path& path) {
  if (!fs::exists(path)) return json::object();
  json value = read_json(path);
  if (!value.is_object()) throw DataError("{}: not a JSON object", path.string());
  return value;
}

std::string read_template(const fs::path& path) {
  std::string source = read_file(path);
  throw_if_foreign(source, path.string(), ContentKind::text);
  return source;
}

// Templates in files of their own: the one for plain conversations, and others (tool_use) by name, as a list {"name", "template"}.
void read_templates(const fs::path& directory, json& config) {
  if (const fs::path jinja = directory / "chat_template.jinja"; fs::exists(jinja)) config["chat_template"] = read_template(jinja);
  const fs::path others = directory / "additional_chat_templates";
  if (!fs::is_directory(others)) return;
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(others)) {
    if (entry.path().extension() == ".jinja") paths.push_back(entry.path());
  }
  std::ranges::sort(paths);
  json list = json::array();
  if (config.contains("chat_template") && config["chat_template"].is_string())
    list.push_back({{"name", "default"}, {"template", config["chat_template"]}});
  for (const auto& path : paths) list.push_back({{"name", path.stem().string()}, {"template", read_template(path)}});
  if (!paths.empty()) config["chat_template"] = std::move(list);
}

// tokenizer_config.json and the tokens that it and its neighbours add.
void read_tokenizer_config(const fs::path& directory, TokenizerFiles& files) {
  const fs::path path = directory / "tokenizer_config.json", added = directory / "added_tokens.json";
  json config = read_object_if_there(path);
  merge_special_tokens(config, read_object_if_there(directory / "special_tokens_map.json"));
  files.added_tokens = added_tokens(config, path.string(), read_object_if_there(added), added.string());
  for (const char* key : kNamedTokens) {
    if (config.contains(key) && !config[key].is_null()) config[key] = token_text(config[key], fmt::format("{}: {}", path.string(), key));
  }
  read_templates(directory, config);
  files.tokenizer_config = std::move(config);
}

}  // namespace

std::optional<TokenizerFiles> read_tokenizer_files(const std::vector<fs::path>& directories) {
  for (const fs::path& directory : directories) {
    const fs::path path = directory / "tokenizer.json";
    if (!fs::exists(path)) continue;
    check_run_files(directory, {"tokenizer.json", "tokenizer_config.json"});
    TokenizerFiles files{.tokenizer_json = read_file(path), .tokenizer_config = {}, .origin = path.string()};
    throw_if_foreign(files.tokenizer_json, path.string(), ContentKind::json);
    read_tokenizer_config(directory, files);
    return files;
  }
  return std::nullopt;
}

}  // namespace distil_xlstm::io
