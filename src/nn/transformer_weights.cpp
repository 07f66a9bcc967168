// A decoder's weights under their Hugging Face names.
#include <fmt/format.h>

#include "nn/transformer.h"

namespace distil_xlstm::nn {
namespace {

// The names of one layer that begin with `prefix`.
class LayerNames {
 public:
  LayerNames(const TensorVisitor& visit, std::string_view prefix, int64_t layer)
      : visit_(visit), prefix_(prefix), layer_(fmt::format("model.layers.{}.", layer)) {}

  void vector(const char* name, const Tensor& tensor) const {
    if (tensor.defined() && is_wanted(name)) visit_(layer_ + name, tensor);
  }
  // Tensors that lie one after the other in one, with their numbers of rows.
  void joined(const Tensor& tensor, std::initializer_list<std::pair<const char*, int64_t>> parts) const {
    int64_t row = 0;
    for (const auto& [name, rows] : parts) {
      if (tensor.defined()) vector(name, tensor.narrow(0, row, rows));
      row += rows;
    }
  }
  void matrix(const Matrix& matrix, std::initializer_list<std::pair<const char*, int64_t>> parts) const {
    for (const auto& [name, rows] : parts) {
      if (is_wanted(name)) return joined(matrix.values(), parts);  // may have to be made: only where it is asked for
    }
  }

 private:
  [[nodiscard]] bool is_wanted(const char* name) const { return (layer_ + name).starts_with(prefix_); }

  const TensorVisitor& visit_;
  std::string_view prefix_;
  std::string layer_;
};

}  // namespace

void Transformer::for_each_weight(const TensorVisitor& visit, std::string_view prefix) const {
  const auto one = [&](const std::string& name, const Tensor& tensor) {
    if (name.starts_with(prefix)) visit(name, tensor);
  };
  one("model.embed_tokens.weight", weights_.embedding_VD);
  const int64_t query = config_.num_heads * config_.head_dim, key = config_.num_kv_heads * config_.head_dim;
  const int64_t D = config_.hidden_size, I = config_.intermediate_size;
  for (int64_t index = 0; index < config_.num_layers; ++index) {
    const LayerWeights& layer = weights_.layers[static_cast<size_t>(index)];
    const LayerNames names(visit, prefix, index);
    names.vector("input_layernorm.weight", layer.input_norm_D);
    names.matrix(layer.qkv_ED, {{"self_attn.q_proj.weight", query}, {"self_attn.k_proj.weight", key}, {"self_attn.v_proj.weight", key}});
    names.joined(layer.qkv_bias_E, {{"self_attn.q_proj.bias", query}, {"self_attn.k_proj.bias", key}, {"self_attn.v_proj.bias", key}});
    names.vector("self_attn.q_norm.weight", layer.q_norm_K);
    names.vector("self_attn.k_norm.weight", layer.k_norm_K);
    names.matrix(layer.o_DHK, {{"self_attn.o_proj.weight", D}});
    names.vector("self_attn.o_proj.bias", layer.o_bias_D);
    names.vector("post_attention_layernorm.weight", layer.mlp_norm_D);
    names.matrix(layer.gate_up_2ID, {{"mlp.gate_proj.weight", I}, {"mlp.up_proj.weight", I}});
    names.joined(layer.gate_up_bias_2I, {{"mlp.gate_proj.bias", I}, {"mlp.up_proj.bias", I}});
    names.matrix(layer.down_DI, {{"mlp.down_proj.weight", D}});
    names.vector("mlp.down_proj.bias", layer.down_bias_D);
  }
  one("model.norm.weight", weights_.final_norm_D);
  if (!config_.is_tied) one("lm_head.weight", weights_.head_VD);
}

}  // namespace distil_xlstm::nn
