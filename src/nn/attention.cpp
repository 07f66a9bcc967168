#include "nn/attention.h"

#include <limits>

#include "base/error.h"
#include "ops/attention.h"
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
  if (ops::any_requires_grad({q, k, v})) {  // not every kernel that takes grouped heads has a gradient for them
    return at::scaled_dot_product_attention(q, k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1), optional_mask, 0.0,
                                            is_causal);
  }
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

// LibTorch's kernels for CPUs take an exponential in half precision that makes a number of what is none.
Tensor nan_where_not_finite(Tensor attended_BSE, const Tensor& queries, const Tensor& keys) {
  const bool is_half = queries.scalar_type() == at::kHalf || queries.scalar_type() == at::kBFloat16;
  if (!queries.is_cpu() || !is_half) return attended_BSE;
  const Tensor is_finite_B = finite_rows(queries).logical_and_(finite_rows(keys));
  if (is_finite_B.all().item<bool>()) return attended_BSE;
  return attended_BSE.masked_fill(is_finite_B.logical_not().view({-1, 1, 1}), std::numeric_limits<double>::quiet_NaN());
}

}  // namespace

Tensor attend(const Tensor& q_BSHK, const Tensor& k_BGTK, const Tensor& v_BGTK, const Tensor& new_k_BGSK, const Tensor& mask,
              bool is_causal) {
  const int64_t B = q_BSHK.size(0), S = q_BSHK.size(1), E = q_BSHK.size(2) * q_BSHK.size(3);
  const Tensor attended_BSE = grouped_attention(q_BSHK.transpose(1, 2), k_BGTK, v_BGTK, mask, is_causal).transpose(1, 2).reshape({B, S, E});
  return nan_where_not_finite(attended_BSE, q_BSHK, new_k_BGSK);
}

Tensor document_mask(const Tensor& is_start_BS, at::Device device) {
  const int64_t S = is_start_BS.size(1);
  if (S < 2 || (is_start_BS.is_cpu() && !is_start_BS.narrow(1, 1, S - 1).any().item<bool>())) return {};
  const Tensor document_BS = is_start_BS.to(device).cumsum(1, at::kInt);
  const Tensor same_BSS = document_BS.unsqueeze(2) == document_BS.unsqueeze(1);
  return (same_BSS & causal_rows(0, S, S, device)).unsqueeze(1);
}

Attention::Attention(const TransformerConfig& config, at::Device device)
    : num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      rms_norm_eps_(config.rms_norm_eps),
      rotary_(config.rope, config.head_dim, device) {}

Sight Attention::sight(int64_t B, int64_t S, const at::TensorOptions& options, const Tensor& is_start_BS, KvCache* cache) const {
  const int64_t past = cache ? cache->num_tokens() : 0;
  Sight sight{.cache = cache};
  sight.has_causal_kernel =
      !cache && !at::GradMode::is_enabled() && ops::prefers_causal_attention(options, {B, S, num_kv_heads_, head_dim_});
  if (sight.has_causal_kernel) {
    sight.is_start_BS = is_start_BS;
  } else if (is_start_BS.defined()) {
    sight.mask = document_mask(is_start_BS, options.device());
  } else if (past > 0 && S > 1) {
    sight.mask = causal_rows(past, S, past + S, options.device());
  }
  return sight;
}

AttentionHeads Attention::heads(const AttentionWeights& weights, const MatrixInput& u_BSD, int64_t first_position) const {
  const int64_t B = u_BSD.sizes[0], S = u_BSD.sizes[1], H = num_heads_, G = num_kv_heads_, K = head_dim_;
  const auto rotated = [&](const Tensor& x_BSHK) {
    if (ops::any_requires_grad({x_BSHK})) return rotary_.rotate(x_BSHK, first_position);
    rotary_.rotate_(x_BSHK, first_position);
    return x_BSHK;
  };
  const Tensor qkv_BSHK = weights.qkv_ED.product(u_BSD, weights.qkv_bias_E).view({B, S, H + 2 * G, K});
  const Tensor v_BSGK = qkv_BSHK.narrow(2, H + G, G);
  if (weights.q_norm_K.defined()) {
    return {rotated(ops::rms_norm(qkv_BSHK.narrow(2, 0, H), weights.q_norm_K, rms_norm_eps_)),
            rotated(ops::rms_norm(qkv_BSHK.narrow(2, H, G), weights.k_norm_K, rms_norm_eps_)), v_BSGK};
  }
  const Tensor qk_BSHK = rotated(qkv_BSHK.narrow(2, 0, H + G));
  return {qk_BSHK.narrow(2, 0, H), qk_BSHK.narrow(2, H, G), v_BSGK};
}

Tensor Attention::attended(const AttentionWeights& weights, const MatrixInput& u_BSD, const Sight& sight, int64_t layer) const {
  const int64_t B = u_BSD.sizes[0], S = u_BSD.sizes[1], H = num_heads_, K = head_dim_;
  const auto [q_BSHK, k_BSGK, v_BSGK] = heads(weights, u_BSD, sight.cache ? sight.cache->num_tokens() : 0);
  if (sight.on_heads) sight.on_heads(layer, q_BSHK, k_BSGK);
  if ((sight.has_causal_kernel || sight.cache) && ops::any_requires_grad({q_BSHK, k_BSGK, v_BSGK})) {
    throw ValueError("attention: a gradient is recorded {}", sight.cache ? "with a KV cache" : "with a sight made where none is");
  }
  if (sight.has_causal_kernel) return ops::causal_attention(q_BSHK, k_BSGK, v_BSGK, sight.is_start_BS).view({B, S, H * K});
  const Tensor q_BHSK = q_BSHK.transpose(1, 2);
  Tensor k_BGTK = k_BSGK.transpose(1, 2), v_BGTK = v_BSGK.transpose(1, 2);
  if (sight.cache) std::tie(k_BGTK, v_BGTK) = sight.cache->append(layer, k_BGTK, v_BGTK);
  const bool is_causal = !sight.mask.defined() && S > 1;
  const Tensor attended_BSE = grouped_attention(q_BHSK, k_BGTK, v_BGTK, sight.mask, is_causal).transpose(1, 2).reshape({B, S, H * K});
  return nan_where_not_finite(attended_BSE, q_BSHK, k_BSGK);
}

}  // namespace distil_xlstm::nn
