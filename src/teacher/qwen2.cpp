// Qwen1.5, Qwen2 and Qwen2.5: q, k and v always have a bias, o never.
#include "teacher/families.h"

namespace distil_xlstm::teacher {
namespace {

nn::TransformerConfig read_qwen2(ConfigReader& reader) {
  nn::TransformerConfig config = read_decoder(reader, {.max_position_embeddings = 32768, .num_kv_heads = 32});
  config.has_qkv_bias = true;
  refuse_sliding_window(reader, config.num_layers);
  return config;
}

}  // namespace

const Family kQwen2 = {"qwen2", "Qwen2", read_qwen2};

}  // namespace distil_xlstm::teacher
