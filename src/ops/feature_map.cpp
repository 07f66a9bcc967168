#include "ops/feature_map.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/cuda_backend.h"
#include "ops/feature_map_forms.h"
#include "ops/internal.h"

namespace distil_xlstm::ops {

Tensor softmax_pair_aten(const Tensor& logits_RM, FeatureScale scale_of, double scale, at::ScalarType dtype) {
  const Tensor z_RM = logits_RM.to(compute_type(logits_RM));
  Tensor y_RF = at::cat({z_RM.softmax(1), z_RM.neg().softmax(1)}, 1);
  if (scale_of == FeatureScale::length) y_RF.div_(y_RF.square().sum(1, true).sqrt_());  // a softmax is never 0 throughout
  return y_RF.mul_(scale).to(dtype);
}

// Of y = scale p, p = softmax(z): dz = y (g - <g, y> / scale).
// Of y = scale p / n, n the length of both p together: with g' = g - y <g, y> / scale^2, over both, dz = y (g' - <g', y> n / scale). As
// both p sum to 2, n / scale = 2 / sum(y).
Tensor softmax_pair_backward_aten(const Tensor& grad_RF, const Tensor& features_RF, FeatureScale scale_of, double scale,
                                  at::ScalarType dtype) {
  const at::ScalarType type = compute_type(features_RF);
  const int64_t M = features_RF.size(1) / 2;
  Tensor g_RF = grad_RF.to(type);
  const Tensor y_RF = features_RF.to(type), y_R2M = y_RF.view({-1, 2, M});
  Tensor inverse_R11 = at::full({}, 1.0 / scale, y_RF.options());
  if (scale_of == FeatureScale::length) {
    inverse_R11 = 2.0 / y_R2M.sum({1, 2}, true);
    g_RF = g_RF - y_RF * ((g_RF * y_RF).sum(1, true) / (scale * scale));
  }
  const Tensor g_R2M = g_RF.view({-1, 2, M});
  const Tensor both_R2M = y_R2M * (g_R2M - (g_R2M * y_R2M).sum(2, true) * inverse_R11);
  return (both_R2M.select(1, 0) - both_R2M.select(1, 1)).to(dtype);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool uses_kernels(const Tensor& x, at::ScalarType other, int64_t M) {
  return has_cuda_kernels(x) && x.scalar_type() != at::kDouble && other != at::kDouble && M <= cuda_backend().max_softmax_pair;
}

bool is_wide(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble;
}

Tensor softmax_pair(const Tensor& logits_RM, FeatureScale scale_of, double scale, at::ScalarType dtype) {
  if (logits_RM.is_cpu() && is_wide(logits_RM.scalar_type())) return softmax_pair_cpu(logits_RM, scale_of, scale, dtype);
  if (uses_kernels(logits_RM, dtype, logits_RM.size(1))) return cuda_backend().softmax_pair(logits_RM, scale_of, scale, dtype);
  return softmax_pair_aten(logits_RM, scale_of, scale, dtype);
}

Tensor softmax_pair_backward(const Tensor& grad_RF, const Tensor& features_RF, FeatureScale scale_of, double scale, at::ScalarType dtype) {
  if (grad_RF.is_cpu() && is_wide(dtype) && features_RF.scalar_type() == dtype)
    return softmax_pair_backward_cpu(grad_RF, features_RF, scale_of, scale, dtype);
  if (uses_kernels(grad_RF, dtype, grad_RF.size(1) / 2))
    return cuda_backend().softmax_pair_backward(grad_RF, features_RF, scale_of, scale, dtype);
  return softmax_pair_backward_aten(grad_RF, features_RF, scale_of, scale, dtype);
}

// The heads as a batch of matrices: a view where B and S lie as one dimension.
Tensor by_head(const Tensor& x_BSHK) {
  return x_BSHK.reshape({-1, x_BSHK.size(2), x_BSHK.size(3)}).transpose(0, 1);
}

// x A of each head, written where [N, H, J] is contiguous.
Tensor product(const Tensor& x_HNK, const Tensor& map_HKJ) {
  const Tensor out_NHJ = at::empty({x_HNK.size(1), x_HNK.size(0), map_HKJ.size(2)}, x_HNK.options());
  Tensor out_HNJ = out_NHJ.transpose(0, 1);
  at::bmm_out(out_HNJ, x_HNK, map_HKJ);
  return out_NHJ;
}

// Sums over all tokens: in the map's type where products can give it.
Tensor map_gradient(const Tensor& x_HNK, const Tensor& grad_HNM, at::ScalarType type) {
  if (x_HNK.is_cuda() && !is_wide(x_HNK.scalar_type()) && type == at::kFloat) return at::bmm(x_HNK.transpose(1, 2), grad_HNM, at::kFloat);
  return at::bmm(x_HNK.transpose(1, 2), grad_HNM).to(type);
}

struct FeatureMapFunction : torch::autograd::Function<FeatureMapFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_BSHK, const Tensor& map_HKM, double scale, int64_t dtype_index,
                        int64_t scale_index) {
    const auto dtype = static_cast<at::ScalarType>(dtype_index);
    const auto scale_of = static_cast<FeatureScale>(scale_index);
    const Tensor map = map_HKM.to(x_BSHK.scalar_type());
    const Tensor logits_NHM = product(by_head(x_BSHK), map);
    const Tensor features_RF = softmax_pair(logits_NHM.view({-1, map.size(2)}), scale_of, scale, dtype);
    ctx->save_for_backward({x_BSHK, map, features_RF});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["scale_of"] = scale_index;
    ctx->saved_data["map_type"] = static_cast<int64_t>(map_HKM.scalar_type());
    return features_RF.view({x_BSHK.size(0), x_BSHK.size(1), x_BSHK.size(2), -1});
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x_BSHK = saved[0], &map_HKM = saved[1], &features_RF = saved[2];
    const Tensor grad_RF = grads[0].to(features_RF.scalar_type()).contiguous().view(features_RF.sizes());
    const auto scale_of = static_cast<FeatureScale>(ctx->saved_data["scale_of"].toInt());
    const Tensor grad_RM = softmax_pair_backward(grad_RF, features_RF, scale_of, ctx->saved_data["scale"].toDouble(), x_BSHK.scalar_type());
    const Tensor grad_HNM = grad_RM.view({-1, map_HKM.size(0), map_HKM.size(2)}).transpose(0, 1);
    const auto map_type = static_cast<at::ScalarType>(ctx->saved_data["map_type"].toInt());
    return {product(grad_HNM, map_HKM.transpose(1, 2)).view(x_BSHK.sizes()), map_gradient(by_head(x_BSHK), grad_HNM, map_type), {}, {}, {}};
  }
};

}  // namespace

Tensor feature_map(const Tensor& x_BSHK, const Tensor& map_HKM, double scale, at::ScalarType dtype, FeatureScale scale_of) {
  check_rank("feature_map: x_BSHK", x_BSHK, 4);
  check_rank("feature_map: map_HKM", map_HKM, 3);
  check_shape("feature_map: map_HKM", map_HKM, {x_BSHK.size(2), x_BSHK.size(3), map_HKM.size(2)});
  if (x_BSHK.numel() == 0 || map_HKM.numel() == 0)
    throw ShapeError("feature_map: x_BSHK {}, map_HKM {}: no dimension may be 0", shape_text(x_BSHK.sizes()), shape_text(map_HKM.sizes()));
  check_device("feature_map: x_BSHK", x_BSHK, {map_HKM});
  return FeatureMapFunction::apply(x_BSHK, map_HKM, scale, static_cast<int64_t>(dtype), static_cast<int64_t>(scale_of));
}

}  // namespace distil_xlstm::ops
