// The decoder stack that all teacher families share: RMSNorm, grouped-query attention with rotary positions, gated MLP.
// Letters: B batch, S sequence, T cached positions, D hidden_size, H query heads, G key/value heads, K head_dim, E = (H + 2 G) K,
// I intermediate_size, V vocabulary, L layers.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "nn/language_model.h"
#include "nn/matrix.h"
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

// Matrices are [out, in] as stored; q, k, v lie one after the other in one matrix, and so do gate and up. Undefined: absent.
struct LayerWeights {
  Tensor input_norm_D;
  Matrix qkv_ED;
  Tensor qkv_bias_E, q_norm_K, k_norm_K;
  Matrix o_DHK;
  Tensor o_bias_D, mlp_norm_D;
  Matrix gate_up_2ID;
  Tensor gate_up_bias_2I;
  Matrix down_DI;
  Tensor down_bias_D;
};

struct TransformerWeights {
  Tensor embedding_VD;
  std::vector<LayerWeights> layers;
  Tensor final_norm_D, head_VD;
};

// Keys and values of the tokens seen, preallocated.
class KvCache : public DecodeState {
 public:
  KvCache(const TransformerConfig& config, int64_t batch, int64_t max_tokens, const at::TensorOptions& options);
  [[nodiscard]] int64_t size_bytes() const override;
  [[nodiscard]] int64_t num_tokens() const override { return num_tokens_; }
  [[nodiscard]] int64_t batch() const { return keys_LBGTK_.size(1); }
  [[nodiscard]] int64_t max_tokens() const { return keys_LBGTK_.size(3); }

  // Writes one layer's new keys and values behind the tokens seen; returns all of that layer's so far, as views.
  std::pair<Tensor, Tensor> append(int64_t layer, const Tensor& k_BGSK, const Tensor& v_BGSK);
  void advance(int64_t count) { num_tokens_ += count; }

 private:
  Tensor keys_LBGTK_, values_LBGTK_;
  int64_t num_tokens_ = 0;
};

enum class LayerState { block_output, attention_output };

// Sees layer `index`'s state [B, S, D] and says whether it keeps the tensor. One that it does not keep is overwritten by the next layer.
using LayerVisitor = std::function<bool(int64_t index, const Tensor& state_BSD)>;

class Transformer {
 public:
  Transformer(const TransformerConfig& config, TransformerWeights weights);

  // tokens_BS (int64) -> states after the final norm [B, S, D]. No gradient is recorded.
  //   is_start_BS  uint8 or undefined: 1 begins a document, which then sees no token before it. See document_mask on where its
  //                values are looked at.
  //   visitor      called after every layer with the `state` asked for, before the final norm
  //   cache        its tokens come before these; it grows by S. Not together with is_start_BS
  Tensor forward(const Tensor& tokens_BS, const Tensor& is_start_BS = {}, LayerState state = LayerState::block_output,
                 const LayerVisitor& visitor = {}, KvCache* cache = nullptr);
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
  // What all layers of a forward pass attend by: ops::causal_attention, which cuts documents itself, or LibTorch's with a mask.
  struct Sight {
    bool has_causal_kernel = false;
    Tensor is_start_BS;  // for the kernel
    Tensor mask;         // undefined: causal
    KvCache* cache = nullptr;
  };
  [[nodiscard]] Sight make_sight(const Tensor& tokens_BS, const Tensor& is_start_BS, KvCache* cache) const;
  Tensor attention(int64_t index, const MatrixInput& u_BSD, const Sight& sight);
  void check_tokens(const Tensor& tokens_BS) const;
  void check_cache(const KvCache& cache, const Tensor& tokens_BS, const Tensor& is_start_BS) const;

  template <typename Change>
  void for_each_matrix(Change&& change);

  TransformerConfig config_;
  TransformerWeights weights_;
  Rotary rotary_;
  ProductType product_type_ = ProductType::same_as_weights;
};

// Boolean mask [B, 1, S, S], true where a position may look: not ahead, and not before its own document's start.
// Undefined when no document starts inside a row, and plain causal attention does; on a GPU that is not looked at, since the host would
// have to wait for it: leave is_start_BS undefined there instead (nn::to_device does).
Tensor document_mask(const Tensor& is_start_BS, at::Device device);

}  // namespace distil_xlstm::nn
