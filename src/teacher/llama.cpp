// Llama 1 to 3, SmolLM 1 and 2, Yi, TinyLlama and others of model_type "llama": optional biases, no windows.
#include "teacher/families.h"

namespace distil_xlstm::teacher {
namespace {

nn::TransformerConfig read_llama(ConfigReader& reader) {
  nn::TransformerConfig config = read_decoder(reader, {.max_position_embeddings = 2048});
  const bool has_attention_bias = reader.flag_or("attention_bias", false);
  config.has_qkv_bias = has_attention_bias;
  config.has_o_bias = has_attention_bias;
  config.has_mlp_bias = reader.flag_or("mlp_bias", false);
  reader.only("sliding_window", json(), "Llama attends to the whole context");
  reader.only("use_sliding_window", false, "Llama attends to the whole context");
  return config;
}

}  // namespace

const Family kLlama = {"llama", "Llama", read_llama};

}  // namespace distil_xlstm::teacher
