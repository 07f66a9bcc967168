#include "teacher/config.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <mutex>

#include "base/text.h"
#include "teacher/rope_config.h"

namespace distil_xlstm::teacher {
namespace {

// Keys that change nothing in what a frozen model computes: training, generation, bookkeeping, and how a library runs it.
// clang-format off
constexpr auto kHarmlessKeys = std::to_array<std::string_view>({
    // bookkeeping
    "_name_or_path", "name_or_path", "architectures", "model_type", "transformers_version", "torch_dtype", "dtype",
    "tokenizer_class", "tokenizer_file", "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    "task_specific_params", "prefix", "is_llama_config", "unsloth_version", "unsloth_fixed", "transformers.js_config",
    "max_sequence_length", "model_max_length",
    // training
    "initializer_range", "attention_dropout", "gradient_checkpointing", "tf_legacy_loss", "use_bfloat16",
    // how a library runs it
    "use_cache", "pretraining_tp", "return_dict", "output_hidden_states", "output_attentions", "torchscript",
    "chunk_size_feed_forward", "tie_last_hidden_states", "is_decoder", "cross_attention_hidden_size", "tie_encoder_decoder",
    "_attn_implementation", "attn_implementation", "_attn_implementation_autoset", "_flash_attn_2_enabled", "use_flash_attention_2",
    // special tokens
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
    "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
    // generation
    "max_length", "min_length", "max_new_tokens", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
    "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens",
});
// clang-format on

// Keys by which other families change what a model computes. Each with the value that changes nothing; null and false never do.
// Where the neutral value depends on other sizes (Granite's attention_multiplier replaces 1 / sqrt(head_dim)), there is none.
enum class Neutral { none, zero, one, all_ones };
constexpr auto kChangingKeys = std::to_array<std::pair<std::string_view, Neutral>>({
    {"embedding_multiplier", Neutral::one},
    {"residual_multiplier", Neutral::one},
    {"lm_head_multiplier", Neutral::one},
    {"key_multiplier", Neutral::one},
    {"logits_scaling", Neutral::one},
    {"logit_scale", Neutral::one},
    {"scale_emb", Neutral::one},
    {"rotary_pct", Neutral::one},
    {"attention_multiplier", Neutral::none},
    {"scale_depth", Neutral::none},
    {"dim_model_base", Neutral::none},
    {"query_pre_attn_scalar", Neutral::none},
    {"final_logit_softcapping", Neutral::none},
    {"attn_logit_softcapping", Neutral::none},
    {"router_logit_softcapping", Neutral::none},
    {"clip_qkv", Neutral::none},
    {"qkv_clip", Neutral::none},
    {"num_experts", Neutral::zero},
    {"num_local_experts", Neutral::zero},
    {"n_routed_experts", Neutral::zero},
    {"num_experts_per_tok", Neutral::zero},
    {"kv_lora_rank", Neutral::zero},
    {"q_lora_rank", Neutral::zero},
    {"sliding_window_pattern", Neutral::none},
    {"attention_window_size", Neutral::none},
    {"attention_chunk_size", Neutral::none},
    {"no_rope_layers", Neutral::all_ones},
    {"no_rope_layer_interval", Neutral::zero},
    {"rotary_dim", Neutral::none},
    {"alibi", Neutral::none},
    {"use_alibi", Neutral::none},
    {"use_parallel_residual", Neutral::none},
    {"parallel_residual", Neutral::none},
    {"parallel_attn", Neutral::none},
    {"use_qk_norm", Neutral::none},
    {"qk_layernorm", Neutral::none},
});

bool is_neutral(const json& value, Neutral neutral) {
  if (value.is_null() || value == false) return true;
  switch (neutral) {
    case Neutral::zero:
      return value == 0;
    case Neutral::one:
      return value == 1;
    case Neutral::all_ones:  // 1 = the layer rotates
      return value.is_array() && std::all_of(value.begin(), value.end(), [](const json& layer) { return layer == 1 || layer == true; });
    case Neutral::none:
      break;
  }
  return false;
}

void require_full_attention(ConfigReader& reader, int64_t num_layers) {
  const json* types = reader.find("layer_types");
  if (!types) return;
  const bool fits = types->is_array() && static_cast<int64_t>(types->size()) == num_layers;
  if (!fits || !std::all_of(types->begin(), types->end(), [](const json& type) { return type == "full_attention"; })) {
    reader.refuse("layer_types", "each of the num_hidden_layers layers must be \"full_attention\"");
  }
}

}  // namespace

bool is_harmless_key(std::string_view key) {
  return std::find(kHarmlessKeys.begin(), kHarmlessKeys.end(), key) != kHarmlessKeys.end();
}

ConfigReader::ConfigReader(const json& config, std::string where) : config_(config), where_(std::move(where)) {
  if (!config.is_object()) throw ConfigError("{}: a model configuration must be a JSON object", where_);
}

const json* ConfigReader::find(std::string_view key) {
  read_.emplace(key);
  const auto it = config_.find(key);
  return it == config_.end() || it->is_null() ? nullptr : &*it;
}

void ConfigReader::refuse(std::string_view key, std::string_view allowed) const {
  throw ConfigError("{}: {} = {} is not supported: {}", where_, key, config_.at(std::string(key)).dump(), allowed);
}

int64_t ConfigReader::size(std::string_view key) {
  if (!find(key)) throw ConfigError("{}: key '{}' is missing", where_, key);
  return size_or(key, 0);
}

int64_t ConfigReader::size_or(std::string_view key, int64_t fallback) {
  const json* value = find(key);
  if (!value) return fallback;
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  if (!value->is_number_integer() || value->get<double>() < 1 || value->get<double>() > static_cast<double>(kLargest)) {
    refuse(key, fmt::format("it must be an integer from 1 to {}", kLargest));
  }
  return value->get<int64_t>();
}

double ConfigReader::positive_or(std::string_view key, double fallback) {
  const json* value = find(key);
  if (!value) return fallback;
  if (!value->is_number() || !(value->get<double>() > 0) || !std::isfinite(value->get<double>()))
    refuse(key, "it must be a positive number");
  return value->get<double>();
}

bool ConfigReader::flag_or(std::string_view key, bool fallback) {
  const json* value = find(key);
  if (!value) return fallback;
  if (!value->is_boolean()) refuse(key, "it must be true or false");
  return value->get<bool>();
}

void ConfigReader::only(std::string_view key, const json& allowed, std::string_view why) {
  const json* value = find(key);
  if (value && *value != allowed) refuse(key, why);
}

void ConfigReader::finish() const {
  std::vector<std::string> unknown;
  for (const auto& [key, value] : config_.items()) {
    const bool is_harmless = std::find(kHarmlessKeys.begin(), kHarmlessKeys.end(), key) != kHarmlessKeys.end();
    if (is_harmless || read_.contains(key)) continue;
    const auto* changing = std::ranges::find(kChangingKeys, std::string_view(key), &decltype(kChangingKeys)::value_type::first);
    if (changing != kChangingKeys.end()) {
      if (!is_neutral(value, changing->second)) refuse(key, "it changes what the model computes, and no supported family has it");
    } else if (!value.is_null()) {
      unknown.push_back(key);
    }
  }
  if (unknown.empty()) return;
  static std::mutex mutex;
  static std::set<std::vector<std::string>> warned;
  const std::lock_guard lock(mutex);
  if (!warned.insert(unknown).second) return;
  spdlog::warn("{}: ignored keys that are not known for model_type {}: {}", where_, config_.value("model_type", ""), join(unknown, ", "));
}

nn::TransformerConfig read_decoder(ConfigReader& reader, const DecoderDefaults& defaults) {
  nn::TransformerConfig config;
  config.vocab_size = reader.size("vocab_size");
  config.hidden_size = reader.size("hidden_size");
  config.intermediate_size = reader.size("intermediate_size");
  config.num_layers = reader.size("num_hidden_layers");
  // Far above any model; what is made per layer before the weights are looked at stays small.
  if (config.num_layers > 65536) reader.refuse("num_hidden_layers", "at most 65536 layers are");
  config.num_heads = reader.size("num_attention_heads");
  const bool has_own_default = defaults.num_kv_heads != 0 && !reader.has("num_key_value_heads");
  config.num_kv_heads = reader.size_or("num_key_value_heads", has_own_default ? defaults.num_kv_heads : config.num_heads);
  config.max_position_embeddings = reader.size_or("max_position_embeddings", defaults.max_position_embeddings);
  config.rms_norm_eps = reader.positive_or("rms_norm_eps", 1e-6);
  config.is_tied = reader.flag_or("tie_word_embeddings", false);

  if (config.num_heads % config.num_kv_heads != 0) {
    throw ConfigError("{}: num_key_value_heads = {}{} does not divide num_attention_heads = {}", reader.where(), config.num_kv_heads,
                      has_own_default ? " (the family's default: the key is not there)" : "", config.num_heads);
  }
  config.head_dim = reader.size_or("head_dim", defaults.head_dim);
  if (config.head_dim == 0) {
    if (config.hidden_size % config.num_heads != 0) {
      throw ConfigError("{}: num_attention_heads = {} does not divide hidden_size = {}, and there is no head_dim", reader.where(),
                        config.num_heads, config.hidden_size);
    }
    config.head_dim = config.hidden_size / config.num_heads;
  }
  if (config.head_dim % 2 != 0) {
    throw ConfigError("{}: head_dim = {} must be even: rotary embedding turns pairs of channels", reader.where(), config.head_dim);
  }

  config.rope = read_rope(reader, config.max_position_embeddings);
  require_full_attention(reader, config.num_layers);
  if (const json* act = reader.find("hidden_act"); act && *act != "silu" && *act != "swish")  // two names of one function
    reader.refuse("hidden_act", "only \"silu\", also called \"swish\", is");
  reader.only("rope_interleaved", false, "only the half-split rotation is (q and k rows of an interleaved checkpoint must be reordered)");
  reader.only("quantization_config", json(), "quantised weights are read from GGUF files only; use the unquantised checkpoint");
  reader.only("is_encoder_decoder", false, "only decoders are");
  reader.only("add_cross_attention", false, "only decoders are");
  reader.only("pruned_heads", json::object(), "models with pruned heads are not");
  reader.only("per_layer_config", json::object(), "all layers must be alike");
  return config;
}

void refuse_sliding_window(ConfigReader& reader, int64_t num_layers) {
  const bool uses_window = reader.flag_or("use_sliding_window", false);
  // As transformers: without the key the window is 4096, and only null means that there is none; it begins with layer 28 unless said.
  const bool has_window = reader.find("sliding_window") != nullptr || !reader.has("sliding_window");
  const json* stated = reader.find("max_window_layers");
  const json first_layer = stated ? *stated : reader.has("max_window_layers") ? json() : json(28);
  if (!uses_window || !has_window || reader.find("layer_types")) return;
  if (!first_layer.is_number_integer() || first_layer.get<int64_t>() < num_layers) {
    reader.refuse("use_sliding_window",
                  "every layer must attend to the whole context; with max_window_layers >= num_hidden_layers it would");
  }
}

}  // namespace distil_xlstm::teacher
