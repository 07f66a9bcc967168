// The shape of a decoder stack.
#pragma once

#include <cstdint>

#include "nn/rotary.h"

namespace distil_xlstm::nn {

struct TransformerConfig {
  int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0, num_layers = 0;
  int64_t num_heads = 0, num_kv_heads = 0, head_dim = 0, max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool has_qkv_bias = false, has_o_bias = false, has_mlp_bias = false;
  bool has_qk_norm = false;  // RMSNorm over each query and key head before the rotation
  bool is_tied = false;      // the head is the embedding
  RopeConfig rope;
};

}  // namespace distil_xlstm::nn
