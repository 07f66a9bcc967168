// Grouped-query attention with rotary positions as the token mixer of a decoder layer. Letters: B batch, S sequence, T cached positions,
// D hidden_size, H query heads, G key/value heads, K head_dim, E = (H + 2 G) K.
#pragma once

#include <functional>

#include "nn/kv_cache.h"
#include "nn/matrix.h"
#include "nn/rotary.h"
#include "nn/token_mixer.h"

namespace distil_xlstm::nn {

// q, k, v lie one after the other in one matrix. Undefined: absent.
struct AttentionWeights {
  Matrix qkv_ED;
  Tensor qkv_bias_E, q_norm_K, k_norm_K;
};

// What all layers of a forward pass attend by: ops::causal_attention, which cuts documents itself, or LibTorch's with a mask.
struct Sight {
  bool has_causal_kernel = false;
  Tensor is_start_BS;  // for the kernel
  Tensor mask;         // undefined: causal
  KvCache* cache = nullptr;
  // Sees what scores are made of, with positions. Not empty: the tensors are its to keep.
  std::function<void(int64_t layer, const Tensor& q_BSHK, const Tensor& k_BSGK)> on_heads;
};

// Of each new token, turned by its position.
struct AttentionHeads {
  Tensor q_BSHK, k_BSGK, v_BSGK;
};

// softmax(q k^T / sqrt(K)) v of queries [B, S, H, K] over keys and values [B, G, T, K] -> [B, S, H K]. `mask` is boolean, true where a
// query may look, and broadcast to [B, 1, S, T]; undefined: all, or with is_causal, for S = T, what is not ahead. Differentiable.
// `new_k`: those of the keys that were not there before, of which one that is not finite makes its row NaN.
Tensor attend(const Tensor& q_BSHK, const Tensor& k_BGTK, const Tensor& v_BGTK, const Tensor& new_k_BGSK, const Tensor& mask,
              bool is_causal);

// What all layers share. Several threads may use one.
class Attention {
 public:
  Attention(const TransformerConfig& config, at::Device device);

  // For layers that run in the same grad mode, on tokens [B, S], with products of this device and type. is_start_BS as in
  // Transformer::forward.
  [[nodiscard]] Sight sight(int64_t B, int64_t S, const at::TensorOptions& options, const Tensor& is_start_BS,
                            KvCache* cache = nullptr) const;
  // u_BSD -> [B, S, H K]. `layer` is its place in the cache. Throws ValueError where a gradient is recorded with a cache, or with a sight
  // made without.
  [[nodiscard]] Tensor attended(const AttentionWeights& weights, const MatrixInput& u_BSD, const Sight& sight, int64_t layer) const;
  // For those who attend by themselves.
  [[nodiscard]] AttentionHeads heads(const AttentionWeights& weights, const MatrixInput& u_BSD, int64_t first_position) const;

 private:
  int64_t num_heads_, num_kv_heads_, head_dim_;
  double rms_norm_eps_;
  Rotary rotary_;
};

// With the weights of one layer; all of them outlive it.
class AttentionMixer final : public TokenMixer {
 public:
  AttentionMixer(const Attention& attention, const AttentionWeights& weights, const Sight& sight, int64_t layer = 0)
      : attention_(attention), weights_(weights), sight_(sight), layer_(layer) {}
  [[nodiscard]] Tensor mix(const MatrixInput& u_BSD) override { return attention_.attended(weights_, u_BSD, sight_, layer_); }

 private:
  const Attention& attention_;
  const AttentionWeights& weights_;
  const Sight& sight_;
  int64_t layer_;
};

// Boolean mask [B, 1, S, S], true where a position may look: not ahead, and not before its own document's start.
// Undefined when no document starts inside a row, and plain causal attention does; on a GPU that is not looked at, since the host would
// have to wait for it: leave is_start_BS undefined there instead (nn::to_device does).
Tensor document_mask(const Tensor& is_start_BS, at::Device device);

}  // namespace distil_xlstm::nn
