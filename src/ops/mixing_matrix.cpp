#include "ops/mixing_matrix.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Heads first: [B, H, S, ...].
struct Constants {
  Tensor attention_q, attention_k;
  Tensor document_BS;  // number of its document in the row; undefined: one document
  Tensor mask_BS;
};

// Likewise. log_forget: sums of log sigmoid(f) up to each token.
struct Operands {
  Tensor q, k, igate, log_forget;
};

// Queries [first, first + count) against the keys up to the last of them: squares of the difference and of attention's matrix [B, H].
std::pair<Tensor, Tensor> tile_squares(const Operands& in, const Constants& fixed, int64_t first, int64_t count) {
  const int64_t end = first + count;
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  const auto queries = [&](const Tensor& x) { return x.narrow(2, first, count); };
  const auto keys = [&](const Tensor& x) { return x.narrow(2, 0, end); };
  const auto place = [&](int64_t begin, int64_t end_place) {
    return at::arange(begin, end_place, at::TensorOptions(at::kLong).device(in.q.device()));
  };
  Tensor is_hidden = place(0, end).unsqueeze(0) > place(first, end).unsqueeze(1);
  if (fixed.document_BS.defined()) {
    const Tensor differs =
        fixed.document_BS.narrow(1, first, count).unsqueeze(2) != fixed.document_BS.narrow(1, 0, end).unsqueeze(1);  // [B, count, end]
    is_hidden = (is_hidden.unsqueeze(0) | differs).unsqueeze(1);
  }
  const at::ScalarType type = in.q.scalar_type();
  Tensor attention;
  {
    const at::NoGradGuard no_grad;
    const double scale = 1.0 / std::sqrt(static_cast<double>(fixed.attention_q.size(3)));
    attention = (at::matmul(queries(fixed.attention_q), keys(fixed.attention_k).transpose(2, 3)) * scale)
                    .to(type)
                    .masked_fill_(is_hidden, minus_infinity)
                    .softmax(3);
  }
  // Sums from the tile's first token on: differences of long sums would cancel.
  const Tensor base = in.log_forget.narrow(2, first, 1);
  const Tensor of_query = (queries(in.log_forget) - base).to(type), of_key = (keys(in.igate) - (keys(in.log_forget) - base)).to(type);
  const Tensor log_decay = (of_query.unsqueeze(3) + of_key.unsqueeze(2)).masked_fill(is_hidden, minus_infinity);
  const Tensor largest = std::get<0>(log_decay.detach().max(3, /*keepdim=*/true));
  const Tensor weights = at::matmul(queries(in.q), keys(in.k).transpose(2, 3)) * (log_decay - largest).exp();
  const Tensor mixing = weights / weights.sum(3, /*keepdim=*/true).clamp_min(1e-30);
  const Tensor counts = fixed.mask_BS.narrow(1, first, count).to(type).view({-1, 1, count, 1});
  constexpr std::array<int64_t, 2> kMatrix = {2, 3};
  return {((mixing - attention).square() * counts).sum(kMatrix), (attention.square() * counts).sum(kMatrix)};
}

// Tile by tile, each with its gradient at once, which is kept until backward.
struct MixingErrorFunction : torch::autograd::Function<MixingErrorFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& igate, const Tensor& log_forget,
                        const Constants& fixed, int64_t max_tile_elements) {
    const int64_t B = q.size(0), H = q.size(1), S = q.size(2);
    const bool records = q.requires_grad() || k.requires_grad() || igate.requires_grad() || log_forget.requires_grad();
    std::array<Tensor, 4> leaves = {q.detach(), k.detach(), igate.detach(), log_forget.detach()};
    const at::AutoGradMode mode(records);
    for (Tensor& leaf : leaves) leaf.requires_grad_(records);
    const Operands in{leaves[0], leaves[1], leaves[2], leaves[3]};
    Tensor difference_BH = at::zeros({B, H}, q.options().requires_grad(false)), size_BH = at::zeros_like(difference_BH);
    const int64_t rows = std::clamp<int64_t>(max_tile_elements / (B * H * S), 1, S);
    for (int64_t first = 0; first < S; first += rows) {
      const auto [difference, size] = tile_squares(in, fixed, first, std::min(rows, S - first));
      if (records) difference.sum().backward();
      difference_BH += difference.detach();
      size_BH += size.detach();
    }
    const at::NoGradGuard no_grad;
    const Tensor factor_BH = size_BH.reciprocal().masked_fill_(size_BH == 0, 0.0) / static_cast<double>(H);
    if (records) {
      for (Tensor& leaf : leaves) {
        std::vector<int64_t> shape = {B, H};
        shape.resize(static_cast<size_t>(leaf.dim()), 1);
        leaf.mutable_grad().mul_(factor_BH.view(shape));
      }
      ctx->save_for_backward({leaves[0].grad(), leaves[1].grad(), leaves[2].grad(), leaves[3].grad()});
    }
    return (difference_BH * factor_BH).sum();
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto kept = ctx->get_saved_variables();
    variable_list result(6);
    for (size_t i = 0; i < kept.size(); ++i) result[i] = kept[i] * grads[0].to(kept[i].scalar_type());
    return result;
  }
};

void check(const MixingMatrices& in) {
  const auto& q = in.q_BSHF;
  const auto is = [](const Tensor& x, at::IntArrayRef sizes) { return x.sizes() == sizes; };
  const bool fits = q.dim() == 4 && in.k_BSHF.sizes() == q.sizes() && is(in.igate_BSH, q.sizes().slice(0, 3)) &&
                    is(in.fgate_BSH, q.sizes().slice(0, 3)) && is(in.mask_BS, q.sizes().slice(0, 2)) && in.attention_q_BSHK.dim() == 4 &&
                    in.attention_q_BSHK.sizes().slice(0, 3) == q.sizes().slice(0, 3) && in.attention_k_BSGK.dim() == 4 &&
                    in.attention_k_BSGK.sizes().slice(0, 2) == q.sizes().slice(0, 2) &&
                    in.attention_k_BSGK.size(3) == in.attention_q_BSHK.size(3) && q.size(2) % in.attention_k_BSGK.size(2) == 0;
  if (fits) return;
  throw ShapeError("mixing error: features [{}] and [{}], gates [{}] and [{}], attention's q [{}] and k [{}], mask [{}]",
                   fmt::join(q.sizes(), ", "), fmt::join(in.k_BSHF.sizes(), ", "), fmt::join(in.igate_BSH.sizes(), ", "),
                   fmt::join(in.fgate_BSH.sizes(), ", "), fmt::join(in.attention_q_BSHK.sizes(), ", "),
                   fmt::join(in.attention_k_BSGK.sizes(), ", "), fmt::join(in.mask_BS.sizes(), ", "));
}

}  // namespace

Tensor mixing_error_sum(const MixingMatrices& in, int64_t max_tile_elements) {
  check(in);
  const at::ScalarType type = in.q_BSHF.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto heads_first = [](const Tensor& x) { return x.transpose(1, 2); };
  const int64_t repeats = in.q_BSHF.size(2) / in.attention_k_BSGK.size(2);
  const Tensor log_forget_BHS = at::log_sigmoid(heads_first(in.fgate_BSH).to(at::kDouble)).cumsum(2);
  Constants fixed{.attention_q = heads_first(in.attention_q_BSHK).detach(),
                  .attention_k = heads_first(in.attention_k_BSGK).repeat_interleave(repeats, 1).detach(),
                  .document_BS = {},
                  .mask_BS = in.mask_BS};
  if (in.is_start_BS.defined()) fixed.document_BS = in.is_start_BS.to(in.q_BSHF.device()).cumsum(1, at::kInt);
  return MixingErrorFunction::apply(heads_first(in.q_BSHF).to(type), heads_first(in.k_BSHF).to(type),
                                    heads_first(in.igate_BSH).to(at::kDouble), log_forget_BHS, fixed, max_tile_elements);
}

}  // namespace distil_xlstm::ops
