// Qwen3 (dense): RMSNorm over each query and key head, head_dim of its own (128 when not stated), optional attention biases.
#include "teacher/families.h"

namespace distil_xlstm::teacher {
namespace {

nn::TransformerConfig read_qwen3(ConfigReader& reader) {
  nn::TransformerConfig config = read_decoder(reader, {.max_position_embeddings = 32768, .num_kv_heads = 32, .head_dim = 128});
  config.has_qk_norm = true;
  config.has_qkv_bias = config.has_o_bias = reader.flag_or("attention_bias", false);
  refuse_sliding_window(reader, config.num_layers);
  return config;
}

}  // namespace

const Family kQwen3 = {"qwen3", "Qwen3", read_qwen3};

}  // namespace distil_xlstm::teacher
