#include "nn/transformer.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace distil_xlstm::nn {
namespace {

// Rows [first, first + S) of a causal mask over T columns: true where column <= row.
Tensor causal_rows(int64_t first, int64_t S, int64_t T, at::Device device) {
  const auto options = at::TensorOptions(device).dtype(at::kLong);
  return at::arange(T, options).unsqueeze(0) <= at::arange(first, first + S, options).unsqueeze(1);
}

// Attention of q [B, H, S, K] over k, v [B, G, T, K]. Every fused kernel takes grouped heads on the CPU; on CUDA only those for half
// precision without a mask do (flash; cuDNN's, which comes first on Hopper), so elsewhere the heads are repeated rather than fall back to
// S x T scores in memory.
Tensor grouped_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask, bool is_causal) {
  std::optional<Tensor> optional_mask;
  if (mask.defined()) optional_mask = mask;
  const int64_t repeats = q.size(1) / k.size(1);
  const bool is_wide = q.scalar_type() == at::kFloat || q.scalar_type() == at::kDouble;
  if (q.size(2) == 1 && !mask.defined() && q.is_cpu() && is_wide) return ops::decode_attention(q.squeeze(2), k, v).unsqueeze(2);
  // One token sees the whole cache: the heads of a group become the rows of one query, and k and v are read once.
  if (q.size(2) == 1 && !mask.defined() && repeats > 1) {
    const Tensor grouped = q.reshape({q.size(0), k.size(1), repeats, q.size(3)});
    return at::scaled_dot_product_attention(grouped, k, v).reshape(q.sizes());
  }
  if (repeats == 1 || q.is_cpu() || (q.scalar_type() != at::kFloat && !mask.defined())) {
    return at::scaled_dot_product_attention(q, k, v, optional_mask, 0.0, is_causal, std::nullopt, repeats > 1);
  }
  return at::scaled_dot_product_attention(q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1), optional_mask, 0.0,
                                          is_causal);
}

// Of each row of the batch, whether all values are: a sum is not where one of them is not.
Tensor finite_rows(const Tensor& x_BSHK) {
  return x_BSHK.sum({1, 2, 3}, /*keepdim=*/false, at::kFloat).isfinite();
}

}  // namespace

KvCache::KvCache(const TransformerConfig& config, int64_t batch, int64_t max_tokens, const at::TensorOptions& options) {
  if (batch < 1 || max_tokens < 1) throw ValueError("KV cache: batch = {}, max_tokens = {}: both must be positive", batch, max_tokens);
  const std::vector<int64_t> shape = {config.num_layers, batch, config.num_kv_heads, max_tokens, config.head_dim};
  keys_LBGTK_ = at::empty(shape, options);
  values_LBGTK_ = at::empty(shape, options);
}

int64_t KvCache::size_bytes() const {
  return static_cast<int64_t>(keys_LBGTK_.nbytes() + values_LBGTK_.nbytes());
}

std::pair<Tensor, Tensor> KvCache::append(int64_t layer, const Tensor& k_BGSK, const Tensor& v_BGSK) {
  const int64_t S = k_BGSK.size(2);
  const Tensor keys = keys_LBGTK_.select(0, layer), values = values_LBGTK_.select(0, layer);
  keys.narrow(2, num_tokens_, S).copy_(k_BGSK);
  values.narrow(2, num_tokens_, S).copy_(v_BGSK);
  return {keys.narrow(2, 0, num_tokens_ + S), values.narrow(2, 0, num_tokens_ + S)};
}

Tensor document_mask(const Tensor& is_start_BS, at::Device device) {
  const int64_t S = is_start_BS.size(1);
  if (S < 2 || (is_start_BS.is_cpu() && !is_start_BS.narrow(1, 1, S - 1).any().item<bool>())) return {};
  const Tensor document_BS = is_start_BS.to(device).cumsum(1, at::kInt);
  const Tensor same_BSS = document_BS.unsqueeze(2) == document_BS.unsqueeze(1);
  return (same_BSS & causal_rows(0, S, S, device)).unsqueeze(1);
}

template <typename Change>
void Transformer::for_each_matrix(Change&& change) {
  for (LayerWeights& layer : weights_.layers) {
    for (Matrix* matrix : {&layer.qkv_ED, &layer.o_DHK, &layer.gate_up_2ID, &layer.down_DI}) change(*matrix);
  }
}

Transformer::Transformer(const TransformerConfig& config, TransformerWeights weights)
    : config_(config), weights_(std::move(weights)), rotary_(config_.rope, config_.head_dim, weights_.embedding_VD.device()) {
  for_each_matrix([](Matrix& matrix) { matrix.pack(); });  // never seen again in the stored layout
}

void Transformer::check_tokens(const Tensor& tokens_BS) const {
  if (tokens_BS.dim() != 2 || tokens_BS.numel() == 0) {
    throw ShapeError("transformer: tokens of shape {}, must be [batch, sequence]", fmt::join(tokens_BS.sizes(), " x "));
  }
  if (!tokens_BS.is_cpu()) return;
  const auto [lowest, highest] = at::aminmax(tokens_BS);
  if (lowest.item<int64_t>() < 0 || highest.item<int64_t>() >= config_.vocab_size) {
    throw ValueError("transformer: token ids {} to {}, the vocabulary has {}: were they made with another tokenizer?",
                     lowest.item<int64_t>(), highest.item<int64_t>(), config_.vocab_size);
  }
}

void Transformer::check_cache(const KvCache& cache, const Tensor& tokens_BS, const Tensor& is_start_BS) const {
  if (is_start_BS.defined()) throw ValueError("transformer: document starts cannot be given together with a KV cache");
  if (tokens_BS.size(0) != cache.batch()) {
    throw ShapeError("transformer: {} sequences for a KV cache of {}", tokens_BS.size(0), cache.batch());
  }
  if (cache.num_tokens() + tokens_BS.size(1) > cache.max_tokens()) {
    throw ValueError("transformer: {} more tokens after {} do not fit the KV cache of {}: make its state with a larger max_tokens",
                     tokens_BS.size(1), cache.num_tokens(), cache.max_tokens());
  }
}

void Transformer::use_fp8_products() {
  const at::NoGradGuard no_grad;
  for_each_matrix([](Matrix& matrix) { matrix.use_fp8(); });
  product_type_ = ProductType::fp8;
}

Transformer::Sight Transformer::make_sight(const Tensor& tokens_BS, const Tensor& is_start_BS, KvCache* cache) const {
  const int64_t B = tokens_BS.size(0), S = tokens_BS.size(1), past = cache ? cache->num_tokens() : 0;
  const at::TensorOptions options = weights_.embedding_VD.options();
  Sight sight{.cache = cache};
  sight.has_causal_kernel = !cache && ops::prefers_causal_attention(options, {B, S, config_.num_kv_heads, config_.head_dim});
  if (sight.has_causal_kernel) {
    sight.is_start_BS = is_start_BS;
  } else if (is_start_BS.defined()) {
    sight.mask = document_mask(is_start_BS, options.device());
  } else if (past > 0 && S > 1) {
    sight.mask = causal_rows(past, S, past + S, options.device());
  }
  return sight;
}

Tensor Transformer::attention(int64_t index, const MatrixInput& u_BSD, const Sight& sight) {
  const LayerWeights& layer = weights_.layers[static_cast<size_t>(index)];
  const int64_t B = u_BSD.sizes[0], S = u_BSD.sizes[1], H = config_.num_heads, G = config_.num_kv_heads, K = config_.head_dim;
  const int64_t first_position = sight.cache ? sight.cache->num_tokens() : 0;

  const Tensor qkv_BSHK = layer.qkv_ED.product(u_BSD, layer.qkv_bias_E).view({B, S, H + 2 * G, K});
  Tensor q_BSHK = qkv_BSHK.narrow(2, 0, H), k_BSGK = qkv_BSHK.narrow(2, H, G);
  if (config_.has_qk_norm) {
    q_BSHK = ops::rms_norm(q_BSHK, layer.q_norm_K, config_.rms_norm_eps);
    k_BSGK = ops::rms_norm(k_BSGK, layer.k_norm_K, config_.rms_norm_eps);
    rotary_.rotate_(q_BSHK, first_position);
    rotary_.rotate_(k_BSGK, first_position);
  } else {
    rotary_.rotate_(qkv_BSHK.narrow(2, 0, H + G), first_position);
  }

  if (sight.has_causal_kernel) {
    return ops::causal_attention(q_BSHK, k_BSGK, qkv_BSHK.narrow(2, H + G, G), sight.is_start_BS).view({B, S, H * K});
  }
  const Tensor q_BHSK = q_BSHK.transpose(1, 2);
  Tensor k_BGTK = k_BSGK.transpose(1, 2), v_BGTK = qkv_BSHK.narrow(2, H + G, G).transpose(1, 2);
  if (sight.cache) std::tie(k_BGTK, v_BGTK) = sight.cache->append(index, k_BGTK, v_BGTK);
  const bool is_causal = !sight.mask.defined() && S > 1;
  Tensor attended = grouped_attention(q_BHSK, k_BGTK, v_BGTK, sight.mask, is_causal).transpose(1, 2).reshape({B, S, H * K});
  const bool is_half = q_BSHK.scalar_type() == at::kHalf || q_BSHK.scalar_type() == at::kBFloat16;
  if (!q_BSHK.is_cpu() || !is_half) return attended;
  // LibTorch's kernels for CPUs take an exponential in half precision that makes a number of what is none.
  const Tensor is_finite_B = finite_rows(q_BSHK).logical_and_(finite_rows(k_BSGK));
  if (is_finite_B.all().item<bool>()) return attended;
  return attended.masked_fill(is_finite_B.logical_not().view({B, 1, 1}), std::numeric_limits<double>::quiet_NaN());
}

Tensor Transformer::forward(const Tensor& tokens_BS, const Tensor& is_start_BS, LayerState state, const LayerVisitor& visitor,
                            KvCache* cache) {
  const at::NoGradGuard no_grad;
  check_tokens(tokens_BS);
  if (cache) check_cache(*cache, tokens_BS, is_start_BS);
  const at::Device device = weights_.embedding_VD.device();
  const Sight sight = make_sight(tokens_BS, is_start_BS, cache);

  Tensor x_BSD = at::embedding(weights_.embedding_VD, tokens_BS.to(device));
  bool is_kept = false;  // by the visitor, as the last layer left it
  for (int64_t index = 0; index < config_.num_layers; ++index) {
    const LayerWeights& layer = weights_.layers[static_cast<size_t>(index)];
    const auto input_BSD = is_kept ? rms_norm_input_of_copy(x_BSD, layer.input_norm_D, config_.rms_norm_eps, product_type_)
                                   : rms_norm_input(x_BSD, layer.input_norm_D, config_.rms_norm_eps, product_type_);
    const auto attended_BSE = matrix_input(attention(index, input_BSD, sight), product_type_);
    if (visitor && state == LayerState::attention_output) {
      const Tensor output_BSD = layer.o_DHK.product(attended_BSE, layer.o_bias_D);
      visitor(index, output_BSD);
      x_BSD.add_(output_BSD);
    } else {
      layer.o_DHK.add_product_(x_BSD, attended_BSE, layer.o_bias_D);
    }

    const auto mlp_input_BSD = rms_norm_input(x_BSD, layer.mlp_norm_D, config_.rms_norm_eps, product_type_);
    const auto gated_BSI = layer.gate_up_2ID.swiglu_product_input(mlp_input_BSD, layer.gate_up_bias_2I, product_type_);
    layer.down_DI.add_product_(x_BSD, gated_BSI, layer.down_bias_D);
    is_kept = visitor && state == LayerState::block_output && visitor(index, x_BSD);
  }
  if (cache) cache->advance(tokens_BS.size(1));
  return final_norm(x_BSD);
}

Tensor Transformer::final_norm(const Tensor& hidden) const {
  const at::NoGradGuard no_grad;
  return ops::rms_norm(hidden, weights_.final_norm_D, config_.rms_norm_eps);
}

Tensor Transformer::logits(const Tensor& hidden) const {
  const at::NoGradGuard no_grad;
  return ops::linear_without_grad(hidden.to(weights_.head_VD.options()), weights_.head_VD).to(at::kFloat);
}

}  // namespace distil_xlstm::nn
