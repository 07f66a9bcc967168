#include "student/convert/look_back.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/norm.h"

namespace distil_xlstm::student {
namespace {

constexpr int64_t kMaxTokens = 1024;

}  // namespace

LayerAttention::LayerAttention(const ConvertConfig& config, const Tensor& norm_D, const CellWeights& w, const Tensor& x_BSD,
                               const Tensor& is_start_BS)
    : num_tokens_(std::min(x_BSD.size(1), kMaxTokens)), is_start_BS_(is_start_BS) {
  const at::NoGradGuard no_grad;
  const auto& decoder = config.decoder;
  const int64_t E = config.inner_size(), H = decoder.num_heads, K = decoder.head_dim;
  const at::ScalarType type = w.qkv_TD.scalar_type();
  const Tensor u_BSD = ops::rms_norm(x_BSD.narrow(1, 0, num_tokens_).to(type), norm_D.to(type), decoder.rms_norm_eps);
  const Tensor qkv_BST = at::linear(u_BSD, w.qkv_TD, w.qkv_bias_T);
  const auto part = [&](int64_t index) { return qkv_BST.narrow(2, index * E, E).view({u_BSD.size(0), num_tokens_, H, K}); };
  const nn::Rotary rotary(decoder.rope, K, x_BSD.device());  // all of it, whatever the student keeps
  const auto placed = [&](const Tensor& heads_BSHK, const Tensor& norm_K) {
    const Tensor x = norm_K.defined() ? ops::rms_norm(heads_BSHK, norm_K, decoder.rms_norm_eps) : heads_BSHK;
    return rotary.rotate(x, 0).transpose(1, 2);
  };
  q_BHSK_ = placed(part(0), w.q_norm_K);
  k_BHSK_ = placed(part(1), w.k_norm_K);
  if (qkv_BST.size(2) == 3 * E) v_BHSK_ = part(2).transpose(1, 2);
  const Tensor place_S = at::arange(num_tokens_, q_BHSK_.options().dtype(at::kLong));
  distance_SS_ = place_S.unsqueeze(1) - place_S.unsqueeze(0);
}

Tensor LayerAttention::shares(int64_t row) const {
  Tensor is_hidden_SS = distance_SS_ < 0;
  if (is_start_BS_.defined()) {
    const Tensor document_S = is_start_BS_.select(0, row).narrow(0, 0, num_tokens_).to(q_BHSK_.device()).cumsum(0, at::kInt);
    is_hidden_SS = is_hidden_SS | (document_S.unsqueeze(1) != document_S.unsqueeze(0));
  }
  const Tensor scores_HSS = at::matmul(q_BHSK_[row], k_BHSK_[row].transpose(1, 2)) / std::sqrt(static_cast<double>(q_BHSK_.size(3)));
  return scores_HSS.masked_fill(is_hidden_SS, -std::numeric_limits<double>::infinity()).softmax(2);
}

// A row at a time: [H, S, S] is what it takes.
Tensor LayerAttention::mean_look_back() const {
  const at::NoGradGuard no_grad;
  const int64_t B = q_BHSK_.size(0), S = num_tokens_;
  Tensor sum_H;
  for (int64_t row = 0; row < B; ++row) {
    const Tensor distances_HS = (shares(row) * distance_SS_.clamp_min(0)).sum(2);
    const Tensor mean_H = distances_HS.narrow(1, S / 4, S - S / 4).mean(1);
    sum_H = sum_H.defined() ? sum_H + mean_H : mean_H;
  }
  return sum_H / static_cast<double>(B);
}

std::pair<Tensor, Tensor> LayerAttention::products(const Tensor& mixed_BSE) const {
  const int64_t B = q_BHSK_.size(0), H = q_BHSK_.size(1), K = q_BHSK_.size(3);
  const Tensor mixed_BHSK = mixed_BSE.narrow(1, 0, num_tokens_).view({B, num_tokens_, H, K}).transpose(1, 2).to(at::kDouble);
  Tensor product_HK = at::zeros({H, K}, mixed_BHSK.options()), square_HK = at::zeros({H, K}, mixed_BHSK.options());
  for (int64_t row = 0; row < B; ++row) {
    product_HK += (at::matmul(shares(row), v_BHSK_[row]).to(at::kDouble) * mixed_BHSK[row]).sum(1);
    square_HK += mixed_BHSK[row].square().sum(1);
  }
  return {product_HK, square_HK};
}

Tensor LayerAttention::value_factors(const Tensor& mixed_BSE) const {
  const at::NoGradGuard no_grad;
  const auto [product_HK, square_HK] = products(mixed_BSE);
  const Tensor product_H = product_HK.sum(1), square_H = square_HK.sum(1);
  return (product_H / square_H).clamp(0.1, 10.0).masked_fill(square_H == 0, 1.0);
}

Tensor LayerAttention::channel_factors(const Tensor& mixed_BSE) const {
  const at::NoGradGuard no_grad;
  const auto [product_HK, square_HK] = products(mixed_BSE);
  return (product_HK / square_HK).masked_fill(square_HK == 0, 1.0).flatten();
}

Tensor forget_gate_of(const Tensor& half_life_H) {
  return at::logit(at::pow(2.0, -half_life_H.clamp(2.0, 2000.0).reciprocal()));
}

}  // namespace distil_xlstm::student
