#include "io/gguf_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <set>

#include "base/text.h"
#include "io/gguf_tokenizer.h"

namespace distil_xlstm::io {
namespace {

// Metadata of one architecture: keys without its name in front.
class Metadata {
 public:
  explicit Metadata(const GgufFile& file) : file_(file), architecture_(file.require<std::string>("general.architecture")) {}

  [[nodiscard]] const std::string& architecture() const { return architecture_; }
  [[nodiscard]] std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_, name); }
  [[nodiscard]] bool has(std::string_view name) const { return file_.metadata().contains(key(name)); }

  // A size: positive. Some files give a list with one value a layer, which must all be the same.
  [[nodiscard]] int64_t size(std::string_view name) const {
    int64_t value = 0;
    const auto it = file_.metadata().find(key(name));
    const auto* list = it == file_.metadata().end() ? nullptr : std::get_if<std::vector<int64_t>>(&it->second);
    if (list == nullptr) {
      value = file_.require<int64_t>(key(name));
    } else if (!list->empty() && std::all_of(list->begin(), list->end(), [&](int64_t each) { return each == list->front(); })) {
      value = list->front();
    } else {
      throw DataError("{}: metadata key '{}' differs between layers, which is not supported", where(), key(name));
    }
    if (value <= 0 || value > INT32_MAX) throw DataError("{}: metadata key '{}' is {}, which is no size", where(), key(name), value);
    return value;
  }
  [[nodiscard]] int64_t size_or(std::string_view name, int64_t fallback) const { return has(name) ? size(name) : fallback; }
  [[nodiscard]] double number(std::string_view name) const { return file_.require<double>(key(name)); }
  [[nodiscard]] double number_or(std::string_view name, double fallback) const { return file_.get_or(key(name), fallback); }
  [[nodiscard]] std::string text_or(std::string_view name, const std::string& fallback) const { return file_.get_or(key(name), fallback); }
  [[nodiscard]] std::string where() const { return file_.path().string(); }

  // A key of the architecture that is not in use below and says something other than "off" would change the result.
  void refuse_unknown_keys() const {
    constexpr std::array<std::string_view, 19> kKnown = {"block_count",
                                                         "context_length",
                                                         "embedding_length",
                                                         "feed_forward_length",
                                                         "vocab_size",
                                                         "tensor_data_layout",
                                                         "attention.head_count",
                                                         "attention.head_count_kv",
                                                         "attention.key_length",
                                                         "attention.value_length",
                                                         "attention.layer_norm_rms_epsilon",
                                                         "rope.dimension_count",
                                                         "rope.freq_base",
                                                         "rope.scale_linear",
                                                         "rope.scaling.type",
                                                         "rope.scaling.factor",
                                                         "rope.scaling.original_context_length",
                                                         "rope.scaling.finetuned",
                                                         "attention.causal"};
    const std::string prefix = architecture_ + ".";
    for (auto it = file_.metadata().lower_bound(prefix); it != file_.metadata().end() && it->first.starts_with(prefix); ++it) {
      const std::string_view name = std::string_view(it->first).substr(prefix.size());
      if (std::find(kKnown.begin(), kKnown.end(), name) == kKnown.end() && !is_off(it->second)) {
        throw DataError("{}: metadata key '{}' is not supported: it may change what the model computes", where(), it->first);
      }
    }
    if (!file_.get_or(key("attention.causal"), true)) throw DataError("{}: attention.causal is false: not a language model", where());
  }

 private:
  static bool is_off(const GgufValue& value) {
    if (const bool* flag = std::get_if<bool>(&value)) return !*flag;
    if (const int64_t* number = std::get_if<int64_t>(&value)) return *number == 0;
    if (const double* number = std::get_if<double>(&value)) return *number == 0.0;
    return false;
  }

  const GgufFile& file_;
  std::string architecture_;
};

// The factors by which Llama 3's rule divides the rotary frequencies.
std::vector<double> llama3_factors(double factor, double rope_theta, int64_t head_dim, double original_length) {
  constexpr double kLowFrequencyFactor = 1.0, kHighFrequencyFactor = 4.0;
  std::vector<double> factors;
  for (int64_t i = 0; i < head_dim; i += 2) {
    const double wavelength = 2.0 * std::numbers::pi * std::pow(rope_theta, static_cast<double>(i) / static_cast<double>(head_dim));
    const double smooth = (original_length / wavelength - kLowFrequencyFactor) / (kHighFrequencyFactor - kLowFrequencyFactor);
    if (smooth > 1.0) {
      factors.push_back(1.0);
    } else if (smooth < 0.0) {
      factors.push_back(factor);
    } else {
      factors.push_back(1.0 / ((1.0 - smooth) / factor + smooth));
    }
  }
  return factors;
}

// The file keeps only the factors that Llama 3's rule gave: the rule's numbers are found again, or the file is refused.
json llama3_scaling(const TensorView& tensor, double rope_theta, int64_t head_dim, const std::string& where) {
  constexpr double kOriginalLength = 8192.0;
  std::vector<float> factors(static_cast<size_t>(tensor.num_elements()));
  to_float(tensor.dtype, tensor.bytes, factors.data());
  const auto differs = [](double a, double b) { return !(std::abs(a - b) <= 1e-4 * std::abs(b)); };
  if (std::all_of(factors.begin(), factors.end(), [](float value) { return value == 1.0F; })) return nullptr;
  const double factor = factors.empty() ? 0.0 : *std::max_element(factors.begin(), factors.end());
  const std::vector<double> expected = llama3_factors(factor, rope_theta, head_dim, kOriginalLength);
  if (factor < 1.0 ||
      !std::equal(factors.begin(), factors.end(), expected.begin(), expected.end(), [&](double a, double b) { return !differs(a, b); })) {
    throw DataError(
        "{}: rope_freqs.weight is not what Llama 3's rule gives (original length 8192, factors 1 and 4), which alone is supported", where);
  }
  return {{"rope_type", "llama3"},
          {"factor", factor},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", static_cast<int64_t>(kOriginalLength)}};
}

json metadata_scaling(const Metadata& metadata) {
  const double factor = metadata.number_or("rope.scaling.factor", metadata.number_or("rope.scale_linear", 1.0));
  const std::string type = metadata.text_or("rope.scaling.type", factor == 1.0 ? "none" : "linear");
  if (type == "none" || (type == "linear" && factor == 1.0)) return nullptr;
  if (type == "linear") return {{"rope_type", "linear"}, {"factor", factor}};
  if (type == "yarn") {
    return {{"rope_type", "yarn"},
            {"factor", factor},
            {"original_max_position_embeddings", metadata.size("rope.scaling.original_context_length")}};
  }
  throw DataError("{}: rope.scaling.type = '{}' is not supported: none, linear and yarn are", metadata.where(), replace_invalid_utf8(type));
}

json rope_scaling(const GgufFile& file, const Metadata& metadata, double rope_theta, int64_t head_dim) {
  json scaling = metadata_scaling(metadata);
  const TensorView* factors = file.find("rope_freqs.weight");
  if (factors == nullptr) return scaling;
  json llama3 = llama3_scaling(*factors, rope_theta, head_dim, metadata.where());
  if (llama3.is_null()) return scaling;
  if (!scaling.is_null()) throw DataError("{}: rope.scaling.type and rope_freqs.weight together are not supported", metadata.where());
  return llama3;
}

json special_ids(const GgufFile& file) {
  json ids = json::object();
  for (const auto& [key, which] : {std::pair{"bos_token_id", "bos"}, {"eos_token_id", "eos"}, {"pad_token_id", "padding"}}) {
    if (const int64_t* id = file.get<int64_t>(fmt::format("tokenizer.ggml.{}_token_id", which))) ids[key] = *id;
  }
  return ids;
}

// Where llama.cpp ends a text whatever the metadata say: ends of texts, turns and messages of known models.
constexpr std::array kEndPieces = {"<|eot_id|>",    "<|im_end|>", "<|end|>",    "<|return|>", "<|call|>",        "<end_of_turn>",
                                   "<|endoftext|>", "</s>",       "<|eom_id|>", "<EOT>",      "<|end_of_text|>", "<end_of_utterance>"};

// Generation ends at EOS and at the end of a turn or message.
json generation_config(const GgufFile& file) {
  json config = special_ids(file);
  std::set<int64_t> ends;
  const auto* pieces = file.get<std::vector<std::string>>("tokenizer.ggml.tokens");
  for (const char* which : {"eos", "eot", "eom"}) {
    const std::string key = fmt::format("tokenizer.ggml.{}_token_id", which);
    const int64_t* id = file.get<int64_t>(key);
    if (id == nullptr) continue;
    if (*id < 0 || (pieces != nullptr && static_cast<size_t>(*id) >= pieces->size())) {
      throw DataError("{}: {} is {}, it must be an id of the vocabulary{}", file.path().string(), key, *id,
                      pieces == nullptr ? "" : fmt::format(" of {} tokens", pieces->size()));
    }
    ends.insert(*id);
  }
  for (size_t id = 0; pieces != nullptr && id < pieces->size(); ++id) {
    if (std::ranges::find(kEndPieces, std::string_view((*pieces)[id])) != kEndPieces.end()) ends.insert(static_cast<int64_t>(id));
  }
  if (ends.size() == 1) {
    config["eos_token_id"] = *ends.begin();
  } else if (!ends.empty()) {
    config["eos_token_id"] = ends;
  }
  return config;
}

void check_architecture(const GgufFile& file, const Metadata& metadata) {
  if (metadata.architecture() != "llama" && metadata.architecture() != "qwen2") {
    throw DataError("{}: architecture '{}' is not supported: llama and qwen2 are", metadata.where(),
                    replace_invalid_utf8(metadata.architecture()));
  }
  if (const int64_t parts = file.get_or<int64_t>("split.count", 1); parts > 1) {
    throw DataError("{}: one of {} parts of a model: merge them with `llama-gguf-split --merge`", metadata.where(), parts);
  }
  metadata.refuse_unknown_keys();
}

}  // namespace

json gguf_config(const GgufFile& file) {
  const Metadata metadata(file);
  check_architecture(file, metadata);
  const bool is_llama = metadata.architecture() == "llama";
  const std::string where = metadata.where();
  const TensorView* embedding = file.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2)
    throw DataError("{}: tensor 'token_embd.weight' is missing or no matrix", where);
  const int64_t hidden_size = metadata.size("embedding_length");
  const int64_t num_heads = metadata.size("attention.head_count");
  const int64_t head_dim = metadata.size_or("attention.key_length", hidden_size / num_heads);
  for (const char* key : {"attention.value_length", "rope.dimension_count"}) {
    if (const int64_t value = metadata.size_or(key, head_dim); value != head_dim) {
      throw DataError("{}: {} is {}, the heads' width is {}: different ones are not supported", where, metadata.key(key), value, head_dim);
    }
  }
  const double rope_theta = metadata.number_or("rope.freq_base", 10000.0);

  json config;
  config["architectures"] = json::array({is_llama ? "LlamaForCausalLM" : "Qwen2ForCausalLM"});
  config["model_type"] = metadata.architecture();
  config["hidden_size"] = hidden_size;
  config["intermediate_size"] = metadata.size("feed_forward_length");
  config["num_hidden_layers"] = metadata.size("block_count");
  config["num_attention_heads"] = num_heads;
  config["num_key_value_heads"] = metadata.size_or("attention.head_count_kv", num_heads);
  config["head_dim"] = head_dim;
  config["vocab_size"] = embedding->shape[0];
  config["max_position_embeddings"] = metadata.size("context_length");
  config["rms_norm_eps"] = metadata.number("attention.layer_norm_rms_epsilon");
  config["rope_theta"] = rope_theta;
  config["rope_scaling"] = rope_scaling(file, metadata, rope_theta, head_dim);
  config["hidden_act"] = "silu";
  config["tie_word_embeddings"] = file.find("output.weight") == nullptr;
  if (is_llama) {
    config["attention_bias"] = file.find("blk.0.attn_q.bias") != nullptr;
    config["mlp_bias"] = file.find("blk.0.ffn_gate.bias") != nullptr;
  } else {
    config["use_sliding_window"] = false;
  }
  config.update(special_ids(file));
  config["torch_dtype"] = "float32";
  return config;
}

ModelFiles open_gguf_model(const fs::path& path) {
  const auto file = std::make_shared<const GgufFile>(path);
  ModelFiles model{.kind = ModelKind::transformer, .path = path, .config = gguf_config(*file)};
  model.generation_config = generation_config(*file);
  model.generation_config_origin = path.string();
  model.weights = gguf_weights(file, {.heads_permuted = model.config["model_type"] == "llama",
                                      .num_heads = model.config["num_attention_heads"],
                                      .num_kv_heads = model.config["num_key_value_heads"]});
  model.tokenizer = gguf_tokenizer(*file);
  // It may have more tokens than token_embd.weight has rows: what a text uses of them decides (tokenizer/vocabulary.h).
  if (model.tokenizer) model.tokenizer->tokenizer_config["model_max_length"] = model.config["max_position_embeddings"];
  return model;
}

}  // namespace distil_xlstm::io
