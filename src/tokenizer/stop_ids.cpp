#include "tokenizer/stop_ids.h"

#include <algorithm>

namespace distil_xlstm {
namespace {

constexpr const char* kKey = "eos_token_id";

// Ids that a configuration lists. Python's equality would let 2.0 and true pass for ids; here neither is one.
void add_ids(const json& config, const std::string& where, int64_t vocab_size, std::vector<int32_t>& ids) {
  if (!config.is_object()) return;
  const auto found = config.find(kKey);
  if (found == config.end() || found->is_null()) return;
  for (const json& id : found->is_array() ? *found : json::array({*found})) {
    if (!holds<int32_t>(id) || id.get<int32_t>() < 0 || id.get<int32_t>() >= vocab_size) {
      throw DataError("{}: {} = {} must be an integer or a list of integers, each from 0 to {} (the model's vocabulary)", where, kKey,
                      found->dump(-1, ' ', false, json::error_handler_t::replace), vocab_size - 1);
    }
    ids.push_back(id.get<int32_t>());
  }
}

}  // namespace

std::vector<int32_t> stop_ids(const io::ModelFiles& files, const Tokenizer& tokenizer) {
  const std::string where = fs::is_directory(files.path) ? (files.path / "config.json").string() : files.path.string();
  const json* vocab_size = files.config.is_object() && files.config.contains("vocab_size") ? &files.config.at("vocab_size") : nullptr;
  const int64_t num_ids = vocab_size != nullptr && holds<int32_t>(*vocab_size) ? vocab_size->get<int64_t>() : INT32_MAX;
  std::vector<int32_t> ids;
  add_ids(files.generation_config, files.generation_config_origin, num_ids, ids);
  add_ids(files.config, where, num_ids, ids);
  if (const auto eos = tokenizer.eos_id()) ids.push_back(*eos);
  std::ranges::sort(ids);
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

json generation_config(const std::vector<int32_t>& stop_ids, const Tokenizer& tokenizer) {
  json config = json::object();
  if (const auto bos = tokenizer.bos_id()) config["bos_token_id"] = *bos;
  if (stop_ids.size() == 1) {
    config[kKey] = stop_ids.front();
  } else if (!stop_ids.empty()) {
    config[kKey] = stop_ids;
  }
  if (const auto pad = tokenizer.pad_id()) config["pad_token_id"] = *pad;
  return config;
}

}  // namespace distil_xlstm
