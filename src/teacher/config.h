// Reads a Hugging Face config.json key by key, and accounts for every key in it.
#pragma once

#include <set>
#include <string>
#include <string_view>

#include "base/json.h"
#include "nn/transformer.h"

namespace distil_xlstm::teacher {

// Every key is read, known not to change the result, required to have a value that is supported, or warned about:
// none is silently dropped. Errors are ConfigError that name `where`, the key, its value and what is allowed.
class ConfigReader {
 public:
  ConfigReader(const json& config, std::string where);

  [[nodiscard]] int64_t size(std::string_view key);                       // required, 1 to 2^31 - 1
  [[nodiscard]] int64_t size_or(std::string_view key, int64_t fallback);  // missing or null: fallback
  [[nodiscard]] double positive_or(std::string_view key, double fallback);
  [[nodiscard]] bool flag_or(std::string_view key, bool fallback);
  [[nodiscard]] const json* find(std::string_view key);  // nullptr when missing or null; marks the key as read
  [[nodiscard]] bool has(std::string_view key) const { return config_.contains(key); }  // also when it is null

  // The key is missing, null or equal to `allowed`; `why` ends the message ("only full attention is supported").
  void only(std::string_view key, const json& allowed, std::string_view why);

  // Refuses keys of other families that change what a model computes, unless they are at the value that changes nothing. Warns, once
  // in a process for a set of keys, about the others that nobody read and that are not known to be harmless.
  void finish() const;

  [[nodiscard]] const std::string& where() const { return where_; }
  [[noreturn]] void refuse(std::string_view key, std::string_view allowed) const;  // "WHERE: KEY = VALUE is not supported: ALLOWED"

 private:
  const json& config_;
  std::string where_;
  std::set<std::string, std::less<>> read_;
};

// Whether a key of config.json changes nothing in what a frozen model computes: training, generation, bookkeeping.
bool is_harmless_key(std::string_view key);

// What a family takes where config.json has not the key, as its class in transformers; the sizes that tensors have must be there.
struct DecoderDefaults {
  int64_t max_position_embeddings = 2048;
  int64_t num_kv_heads = 0;  // 0: num_attention_heads, which null stands for in every family
  int64_t head_dim = 0;      // 0: hidden_size / num_attention_heads
};

// What all decoder families share: sizes, norms' epsilon, activation, rotary embedding in either spelling (`rope_theta` with
// `rope_scaling`, or `rope_parameters`), full attention in every layer.
nn::TransformerConfig read_decoder(ConfigReader& reader, const DecoderDefaults& defaults);

// `use_sliding_window` gives the layers from `max_window_layers` on a window of `sliding_window` tokens: refused where it would apply.
void refuse_sliding_window(ConfigReader& reader, int64_t num_layers);

}  // namespace distil_xlstm::teacher
