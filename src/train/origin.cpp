#include "train/origin.h"

#include <array>
#include <set>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/text.h"
#include "teacher/fingerprint.h"

namespace distil_xlstm::train {
namespace {

std::string shown(const json& config, const std::string& key) {
  return config.contains(key) ? config[key].dump(-1, ' ', false, json::error_handler_t::replace) : "not there";
}

// Of a GGUF file the program makes the configuration itself, another version perhaps with other keys: only what the file's metadata say
// can be compared.
constexpr std::array kGgufKeys = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                                  "head_dim",    "vocab_size",        "rms_norm_eps",      "rope_theta"};
constexpr const char* kGguf = "gguf";

bool is_of_gguf(const json& origin) {
  return origin.contains("teacher_format") && origin["teacher_format"] == kGguf;
}

json gguf_part(const json& config) {
  json part = json::object();
  for (const char* key : kGgufKeys) {
    if (config.contains(key)) part[key] = config[key];
  }
  return part;
}

void add_config_changes(const json& before, const json& now, std::vector<std::string>& changes) {
  std::set<std::string> keys;
  for (const json& config : {before, now}) {
    for (const auto& [key, value] : config.items()) keys.insert(key);
  }
  for (const std::string& key : keys) {
    const bool is_same = before.contains(key) && now.contains(key) && before[key] == now[key];
    if (!is_same) changes.push_back(fmt::format("  its configuration: {} was {}, is {}", key, shown(before, key), shown(now, key)));
  }
}

}  // namespace

json describe_origin(const OriginInputs& inputs) {
  const json& config = inputs.tokenizer.files().tokenizer_config;
  const json chat_template = config.is_object() && config.contains("chat_template") ? config["chat_template"] : json(nullptr);
  const bool is_gguf = inputs.teacher.path.extension() == ".gguf";
  const json teacher_config = teacher::computing_config(inputs.teacher.config);
  return {{"teacher_format", is_gguf ? kGguf : "safetensors"},
          {"teacher_config", is_gguf ? gguf_part(teacher_config) : teacher_config},
          {"teacher_weights", teacher::weights_fingerprint(*inputs.teacher.weights)},
          {"tokenizer", inputs.tokenizer.fingerprint()},
          {"chat_template", chat_template.is_null() ? json(nullptr) : json(xxh3_128_hex(chat_template.dump()))},
          {"validation_shards", inputs.validation == nullptr ? json(nullptr) : inputs.validation->state()["shards_fingerprint"]},
          {"teacher_precision", inputs.teacher_precision},
          {"precision", inputs.precision}};
}

void check_origin(const json& recorded, const json& now, const std::string& where, const std::string& teacher) {
  if (!recorded.is_object()) {
    spdlog::warn("{}: does not say what teacher it was trained with, as its version recorded none: {} is taken for the same", where,
                 teacher);
    return;
  }
  std::vector<std::string> changes;
  const json before = get_or<json>(recorded, "teacher_config", json::object(), where);
  if (is_of_gguf(recorded) || is_of_gguf(now)) {
    add_config_changes(gguf_part(before), gguf_part(now["teacher_config"]), changes);
  } else {
    add_config_changes(before, now["teacher_config"], changes);
  }
  const auto is_other = [&](const char* key) { return recorded.contains(key) && recorded[key] != now[key]; };
  if (is_other("teacher_weights"))
    changes.push_back(
        fmt::format("  its weights: fingerprint was {}, is {}", shown(recorded, "teacher_weights"), shown(now, "teacher_weights")));
  if (is_other("tokenizer"))
    changes.push_back(fmt::format("  its tokenizer: fingerprint was {}, is {}", shown(recorded, "tokenizer"), shown(now, "tokenizer")));
  if (!changes.empty()) {
    throw DataError(
        "{}: the checkpoint was trained with another teacher than {} is now:\n{}\nBring the first one back, or begin a run of its own with "
        "another --output",
        where, teacher, join(changes, "\n"));
  }
  const bool had_validation = recorded.contains("validation_shards") && !recorded["validation_shards"].is_null();
  if (had_validation && !now["validation_shards"].is_null() && is_other("validation_shards"))
    throw DataError("{}: the run was validated on other shards than those of data.validation now: name the same data to resume", where);
  if (is_other("chat_template"))
    spdlog::warn("{}: the chat template of {} has changed since the run began: the run keeps the one that it has", where, teacher);
  for (const char* key : {"teacher_precision", "precision"}) {
    if (is_other(key))
      spdlog::warn("{}: {} was {}, is {}: the run goes on, but not to the same bits", where, key, shown(recorded, key), shown(now, key));
  }
}

}  // namespace distil_xlstm::train
