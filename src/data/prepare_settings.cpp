#include "data/prepare_settings.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "data/tokenizer_files.h"
#include "io/model_files.h"

namespace distil_xlstm::data {
namespace {

json input_list(const TextReader& reader) {
  json list = json::array();
  for (const auto& path : reader.files()) {
    struct stat info{};
    if (::stat(path.c_str(), &info) != 0) throw IoError("{}: cannot read its size: {}", path.string(), std::strerror(errno));
    const int64_t modified = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
    list.push_back({{"path", path.string()}, {"size_bytes", info.st_size}, {"modified_ns", modified}});
  }
  return list;
}

}  // namespace

void check_options(const PrepareOptions& options) {
  if (options.reader.inputs.empty()) throw ConfigError("prepare: name at least one text file, directory or glob");
  if (!(options.validation_fraction >= 0.0 && options.validation_fraction <= 1.0)) {
    throw ConfigError("validation_fraction = {}: it must lie between 0 and 1", options.validation_fraction);
  }
  // Longer than any context in use; a row is held in memory whole, many times over in a batch.
  constexpr int64_t kMaxContext = int64_t{1} << 24;
  if (options.context_length < 1 || options.context_length > kMaxContext) {
    throw ConfigError("context_length = {}: it must lie between 1 and {}", options.context_length, kMaxContext);
  }
  if (options.max_tokens < 0) throw ConfigError("max_tokens = {}: it must be 0 (all text) or more", options.max_tokens);
  if (options.num_threads < 0) throw ConfigError("threads = {}: it must be 0 (all cores) or more", options.num_threads);
}

json unusual_borders(const TextEncoder& encoder) {
  if (encoder.prefix.size() <= 1 && encoder.suffix.empty()) return json::object();
  return {{"prefix", encoder.prefix}, {"suffix", encoder.suffix}};
}

json describe_settings(const PrepareOptions& options, const TextEncoder& encoder, const TextReader& reader) {
  constexpr const char* kPolicies[] = {"skip", "replace", "fail"};
  constexpr const char* kFormats[] = {"auto", "text", "jsonl", "parquet"};
  constexpr const char* kRows[] = {"auto", "text", "chat"};
  const auto& r = options.reader;
  json settings = {{"model", options.model},
                   {"tokenizer_fingerprint", encoder.fingerprint},
                   {"chat_template", encoder.chat_template_fingerprint},
                   {"vocab_size", encoder.vocab_size},
                   {"context_length", options.context_length},
                   {"document_end", options.document_end},
                   {"validation_fraction", options.validation_fraction},
                   {"max_tokens", options.max_tokens},
                   {"shard_bytes", options.shard_bytes},
                   {"format", kFormats[static_cast<int>(r.format)]},
                   {"rows", kRows[static_cast<int>(r.rows)]},
                   {"text_key", r.text_key},
                   {"messages_key", r.messages_key},
                   {"prompt_key", r.prompt_key},
                   {"answer_key", r.answer_key},
                   {"bad_rows", kPolicies[static_cast<int>(r.bad_rows)]},
                   {"normalize_newlines", r.normalize_newlines},
                   {"strip", r.strip},
                   {"max_piece_bytes", r.max_piece_bytes},
                   {"inputs", input_list(reader)}};
  settings.update(unusual_borders(encoder));
  return settings;
}

std::string first_difference(const json& here, const json& there) {
  for (const auto& [key, value] : here.items()) {
    if (key == "chat_template" && !there.contains(key)) continue;  // an output of a version that did not write it down
    if (!there.contains(key)) return fmt::format("{} is new", key);
    if (there[key] != value && key == "inputs") return "the input files, their sizes or their modification times are others";
    if (there[key] != value) return fmt::format("{} is {}, it was {}", key, value.dump(), there[key].dump());
  }
  return "";
}

int64_t num_model_rows(const std::string& name) {
  const fs::path path(name);
  std::error_code ignored;
  json config = json::object();
  if (fs::is_regular_file(path / "config.json", ignored)) {
    config = read_json(path / "config.json");
  } else if (!fs::is_directory(path, ignored) && path.filename() != "tokenizer.json") {
    config = io::open_model(name).config;
  }
  const auto size = config.is_object() ? config.find("vocab_size") : config.end();
  return size != config.end() && size->is_number_integer() ? size->get<int64_t>() : 0;
}

}  // namespace distil_xlstm::data
