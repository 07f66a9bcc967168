// Weights of decoder layers as lists of tensors, as gradients by differences take them.
#pragma once

#include <cmath>

#include "nn/attention.h"
#include "nn/decoder_layer.h"
#include "unit/nn/nn_testing.h"

namespace distil_xlstm::nn {

// Small, for differences of every element, and odd.
struct LayerVariant {
  int64_t num_heads = 3, num_kv_heads = 1;
  bool has_biases = false, has_qk_norm = false;
  static constexpr int64_t D = 7, I = 5, K = 4;

  [[nodiscard]] TransformerConfig config() const {
    TransformerConfig config;
    config.hidden_size = D;
    config.intermediate_size = I;
    config.num_layers = 1;
    config.num_heads = num_heads;
    config.num_kv_heads = num_kv_heads;
    config.head_dim = K;
    return config;
  }
  [[nodiscard]] std::string name() const {
    return fmt::format("{} heads of {} groups, biases {}, q and k norm {}", num_heads, num_kv_heads, has_biases, has_qk_norm);
  }
};

inline std::vector<LayerVariant> layer_variants() {
  return {{},
          {.num_heads = 2, .num_kv_heads = 2, .has_biases = true},
          {.num_heads = 4, .num_kv_heads = 2, .has_qk_norm = true},
          {.has_biases = true, .has_qk_norm = true}};
}

inline Tensor random_matrix(int64_t out, int64_t in) {
  return testing::randn({out, in}, 1.2 / std::sqrt(static_cast<double>(in)));
}

inline Tensor random_norm(int64_t width) {
  return 1 + testing::randn({width}, 0.2);
}

// All but the mixer's: two norms and three matrices, then the biases.
inline std::vector<Tensor> random_decoder_weights(const LayerVariant& variant, int64_t mixed_width) {
  const int64_t D = LayerVariant::D, I = LayerVariant::I;
  std::vector<Tensor> weights = {random_norm(D), random_matrix(D, mixed_width), random_norm(D), random_matrix(2 * I, D),
                                 random_matrix(D, I)};
  if (variant.has_biases) {
    for (const int64_t width : {D, 2 * I, D}) weights.push_back(testing::randn({width}, 0.3));
  }
  return weights;
}

inline DecoderWeights decoder_weights(const std::vector<Tensor>& tensors) {
  DecoderWeights weights{.input_norm_D = tensors[0],
                         .o_DHK = tensors[1],
                         .o_bias_D = {},
                         .mlp_norm_D = tensors[2],
                         .gate_up_2ID = tensors[3],
                         .gate_up_bias_2I = {},
                         .down_DI = tensors[4],
                         .down_bias_D = {}};
  if (tensors.size() > 5) {
    weights.o_bias_D = tensors[5];
    weights.gate_up_bias_2I = tensors[6];
    weights.down_bias_D = tensors[7];
  }
  return weights;
}

inline std::vector<Tensor> random_attention_weights(const LayerVariant& variant) {
  const int64_t K = LayerVariant::K, E = (variant.num_heads + 2 * variant.num_kv_heads) * K;
  std::vector<Tensor> weights = {random_matrix(E, LayerVariant::D)};
  if (variant.has_biases) weights.push_back(testing::randn({E}, 0.3));
  if (variant.has_qk_norm) weights.insert(weights.end(), {random_norm(K), random_norm(K)});
  return weights;
}

inline AttentionWeights attention_weights(const LayerVariant& variant, const std::vector<Tensor>& tensors) {
  AttentionWeights weights{.qkv_ED = tensors[0], .qkv_bias_E = {}, .q_norm_K = {}, .k_norm_K = {}};
  if (variant.has_biases) weights.qkv_bias_E = tensors[1];
  if (variant.has_qk_norm) weights.q_norm_K = tensors[tensors.size() - 2], weights.k_norm_K = tensors.back();
  return weights;
}

}  // namespace distil_xlstm::nn
