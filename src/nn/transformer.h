// The stack of decoder layers with attention that all teacher families share. No gradient is recorded; models that are trained call the
// layers themselves (decoder_layer.h). Letters: B batch, S sequence, D hidden_size, V vocabulary.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "nn/attention.h"
#include "nn/decoder_layer.h"
#include "nn/kv_cache.h"
#include "nn/language_model.h"
#include "nn/transformer_config.h"

namespace distil_xlstm::nn {

// A decoder layer with attention.
struct LayerWeights : AttentionWeights, DecoderWeights {};

struct TransformerWeights {
  Tensor embedding_VD;
  std::vector<LayerWeights> layers;
  Tensor final_norm_D, head_VD;
};

// Who looks on while the layers run, before the final norm; either may be empty.
struct LayerVisitors {
  // Sees the stream after layer `index` and says whether it keeps the tensor. One that it does not keep is overwritten by the next layer.
  std::function<bool(int64_t index, const Tensor& state_BSD)> block_output;
  // Sees what the attention of layer `index` adds to the stream, which is the visitor's to keep.
  std::function<void(int64_t index, const Tensor& output_BSD)> attention_output;
  // Sees its queries and keys, with positions. Likewise.
  std::function<void(int64_t index, const Tensor& q_BSHK, const Tensor& k_BSGK)> attention_heads;
};

class Transformer {
 public:
  Transformer(const TransformerConfig& config, TransformerWeights weights);

  // tokens_BS (int64) -> states after the final norm [B, S, D]. No gradient is recorded.
  //   is_start_BS  uint8 or undefined: 1 begins a document, which then sees no token before it. See document_mask on where its
  //                values are looked at.
  //   cache        its tokens come before these; it grows by S. Not together with is_start_BS
  Tensor forward(const Tensor& tokens_BS, const Tensor& is_start_BS = {}, const LayerVisitors& visitors = {}, KvCache* cache = nullptr);
  // The final norm alone [..., D].
  [[nodiscard]] Tensor final_norm(const Tensor& hidden) const;
  [[nodiscard]] Tensor logits(const Tensor& hidden) const;  // [..., V], float32

  // From now on the products of the layers run in fp8, with a factor for each row of weights and of activations; embedding, head, norms,
  // attention and the residual stream stay as they are. Gives the layers' weights up for their fp8 form.
  void use_fp8_products();

  // Every weight whose Hugging Face name begins with `prefix` (LanguageModel::for_each_weight).
  void for_each_weight(const TensorVisitor& visit, std::string_view prefix) const;

  [[nodiscard]] bool has_fp8_products() const { return product_type_ == ProductType::fp8; }
  [[nodiscard]] const TransformerConfig& config() const { return config_; }
  [[nodiscard]] const TransformerWeights& weights() const { return weights_; }
  [[nodiscard]] at::TensorOptions options() const { return weights_.embedding_VD.options(); }

 private:
  void check_tokens(const Tensor& tokens_BS) const;
  void check_cache(const KvCache& cache, const Tensor& tokens_BS, const Tensor& is_start_BS) const;

  template <typename Change>
  void for_each_matrix(Change&& change);

  TransformerConfig config_;
  TransformerWeights weights_;
  Attention attention_;
  ProductType product_type_ = ProductType::same_as_weights;
};

}  // namespace distil_xlstm::nn
