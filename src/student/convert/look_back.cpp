#include "student/convert/look_back.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "nn/matrix.h"
#include "ops/norm.h"

namespace distil_xlstm::student {
namespace {

// Queries and keys of all heads [B, H, S, K], as attention has them.
std::pair<Tensor, Tensor> queries_and_keys(const ConvertConfig& config, const Tensor& norm_D, const CellWeights& w,
                                           const nn::Rotary& rotary, const Tensor& x_BSD) {
  const auto& decoder = config.decoder;
  const int64_t E = config.inner_size();
  const Tensor u_BSD = ops::rms_norm(x_BSD, norm_D.to(x_BSD.scalar_type()), decoder.rms_norm_eps);
  const auto part = [&](int64_t index, const Tensor& norm_K) {
    const auto of_part = [&](const Tensor& joined) { return joined.narrow(0, index * E, E).to(x_BSD.scalar_type()); };
    Tensor heads_BSHK = at::linear(u_BSD, of_part(w.qkv_TD), w.qkv_bias_T.defined() ? of_part(w.qkv_bias_T) : Tensor())
                            .view({x_BSD.size(0), x_BSD.size(1), decoder.num_heads, decoder.head_dim});
    if (norm_K.defined()) heads_BSHK = ops::rms_norm(heads_BSHK, norm_K.to(x_BSD.scalar_type()), decoder.rms_norm_eps);
    return rotary.rotate(heads_BSHK, 0).transpose(1, 2);
  };
  return {part(0, w.q_norm_K), part(1, w.k_norm_K)};
}

}  // namespace

Tensor mean_look_back(const ConvertConfig& config, const Tensor& norm_D, const CellWeights& weights, const nn::Rotary& rotary,
                      const Tensor& x_BSD, const Tensor& is_start_BS) {
  constexpr int64_t kMaxTokens = 1024;
  const at::NoGradGuard no_grad;
  const int64_t S = std::min(x_BSD.size(1), kMaxTokens), B = x_BSD.size(0);
  const auto [q_BHSK, k_BHSK] = queries_and_keys(config, norm_D, weights, rotary, x_BSD.narrow(1, 0, S).to(weights.qkv_TD.scalar_type()));
  const Tensor place_S = at::arange(S, q_BHSK.options().dtype(at::kLong));
  const Tensor distance_SS = place_S.unsqueeze(1) - place_S.unsqueeze(0);
  Tensor sum_H;
  for (int64_t row = 0; row < B; ++row) {  // one at a time: [H, S, S] is what it takes
    Tensor is_hidden_SS = distance_SS < 0;
    if (is_start_BS.defined()) {
      const Tensor document_S = is_start_BS.select(0, row).narrow(0, 0, S).to(q_BHSK.device()).cumsum(0, at::kInt);
      is_hidden_SS = is_hidden_SS | (document_S.unsqueeze(1) != document_S.unsqueeze(0));
    }
    const Tensor scores_HSS = at::matmul(q_BHSK[row], k_BHSK[row].transpose(1, 2)) / std::sqrt(static_cast<double>(q_BHSK.size(3)));
    const Tensor shares_HSS = scores_HSS.masked_fill(is_hidden_SS, -std::numeric_limits<double>::infinity()).softmax(2);
    const Tensor distances_HS = (shares_HSS * distance_SS.clamp_min(0)).sum(2);
    const Tensor mean_H = distances_HS.narrow(1, S / 4, S - S / 4).mean(1);
    sum_H = sum_H.defined() ? sum_H + mean_H : mean_H;
  }
  return sum_H / static_cast<double>(B);
}

}  // namespace distil_xlstm::student
