#include "ops/norm.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/cuda_backend.h"
#include "ops/internal.h"
#include "ops/norm_forms.h"

namespace distil_xlstm::ops {

LayerNormForward layer_norm_forward_aten(const Tensor& x_NGK, const Tensor& weight_GK, double eps, at::ScalarType y_type) {
  auto [normalized, mean, rstd] = at::native_layer_norm(x_NGK, {x_NGK.size(2)}, {}, {}, eps);
  return {(normalized * (1 + weight_GK)).to(y_type), mean.squeeze(-1), rstd.squeeze(-1)};
}

LayerNormBackward layer_norm_backward_aten(const Tensor& grad_y_NGK, const Tensor& x_NGK, const Tensor& weight_GK, const Tensor& mean_NG,
                                           const Tensor& rstd_NG) {
  const Tensor rstd = rstd_NG.unsqueeze(-1), normalized = (x_NGK - mean_NG.unsqueeze(-1)) * rstd;
  const Tensor grad = grad_y_NGK * (1 + weight_GK);
  const Tensor grad_x = rstd * (grad - grad.mean(-1, true) - normalized * (grad * normalized).mean(-1, true));
  return {grad_x, (grad_y_NGK * normalized).sum(0)};
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kEps = 1e-5;

bool uses_kernels(const Tensor& x, at::ScalarType y_type) {
  return has_cuda_kernels(x) && y_type != at::kDouble;
}

// The type in which x is read: its own where the kernels convert, else the type to compute in.
at::ScalarType input_type(const Tensor& x, at::ScalarType y_type) {
  return uses_kernels(x, y_type) && y_type == x.scalar_type() ? y_type : compute_type(x);
}

Tensor grouped(const Tensor& x, at::ScalarType type, const Tensor& weight, int64_t num_groups) {
  return x.to(type).contiguous().view({-1, num_groups, weight.size(0) / num_groups});
}

Tensor grouped_weight(const Tensor& x, const Tensor& weight, int64_t num_groups) {
  return weight.to(compute_type(x)).contiguous().view({num_groups, -1});
}

LayerNormForward run_forward(const Tensor& x, const Tensor& weight, int64_t num_groups, at::ScalarType y_type) {
  const Tensor x_NGK = grouped(x, input_type(x, y_type), weight, num_groups), weight_GK = grouped_weight(x, weight, num_groups);
  if (!x.is_cpu()) {
    const auto run = uses_kernels(x, y_type) ? cuda_backend().layer_norm_forward : layer_norm_forward_aten;
    return run(x_NGK, weight_GK, kEps, y_type);
  }
  LayerNormForward out = layer_norm_forward_cpu(x_NGK, weight_GK, kEps);
  out.y_NGK = out.y_NGK.to(y_type);
  return out;
}

struct ResidualLayerNormFunction : torch::autograd::Function<ResidualLayerNormFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, int64_t num_groups, int64_t dtype_index) {
    const LayerNormForward out = run_forward(x, weight, num_groups, static_cast<at::ScalarType>(dtype_index));
    // The input keeps its own type while it waits: half the memory for half-precision activations.
    ctx->save_for_backward({x, weight, out.mean_NG, out.rstd_NG});
    ctx->saved_data["num_groups"] = num_groups;
    return out.y_NGK.view(x.sizes());
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const Tensor &x = s[0], &weight = s[1];
    const int64_t num_groups = ctx->saved_data["num_groups"].toInt();
    const at::ScalarType y_type = grads[0].scalar_type();
    const bool has_kernel = uses_kernels(x, y_type);
    const Tensor x_NGK = grouped(x, input_type(x, y_type), weight, num_groups), weight_GK = grouped_weight(x, weight, num_groups);
    const Tensor grad_NGK = grouped(grads[0], has_kernel ? y_type : x_NGK.scalar_type(), weight, num_groups);
    const auto run = x.is_cpu() ? layer_norm_backward_cpu : has_kernel ? cuda_backend().layer_norm_backward : layer_norm_backward_aten;
    const LayerNormBackward out = run(grad_NGK, x_NGK, weight_GK, s[2], s[3]);
    return {out.grad_x_NGK.view(x.sizes()).to(x.scalar_type()), out.grad_weight_GK.view(weight.sizes()).to(weight.scalar_type()), Tensor(),
            Tensor()};
  }
};

void check_weight(const char* name, const Tensor& x, const Tensor& weight) {
  if (!x.defined() || x.dim() == 0) throw ShapeError("{}: x needs at least one dimension", name);
  check_shape(fmt::format("{}: weight", name), weight, {x.size(-1)});
  check_device(fmt::format("{}: x", name), x, {weight});
}

// The kernel keeps a row in registers, as 16-byte vectors or, where rows are no multiple of those, as single values.
bool has_rms_norm_kernel(const Tensor& x, const Tensor& weight) {
  const int64_t width = x.size(-1), vector = 16 / x.element_size();
  return has_cuda_kernels(x) && weight.scalar_type() == x.scalar_type() &&
         (width % vector == 0 ? width / vector : width) <= cuda_backend().max_rms_norm_vectors;
}

}  // namespace

Tensor residual_layer_norm(const Tensor& x, const Tensor& weight, int64_t num_groups, std::optional<at::ScalarType> dtype) {
  check_weight("residual_layer_norm", x, weight);
  if (num_groups < 1 || weight.size(0) % num_groups != 0) {
    throw ShapeError("residual_layer_norm: {} groups do not divide the width {}: choose a divisor", num_groups, weight.size(0));
  }
  const at::ScalarType y_type = dtype.value_or(x.scalar_type());
  if (x.numel() == 0) return x.to(y_type, /*non_blocking=*/false, /*copy=*/true);
  if (any_requires_grad({x, weight})) return ResidualLayerNormFunction::apply(x, weight, num_groups, static_cast<int64_t>(y_type));
  at::NoGradGuard no_grad;
  return run_forward(x, weight, num_groups, y_type).y_NGK.view(x.sizes());
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  check_weight("rms_norm", x, weight);
  if (x.numel() == 0) return x.clone();
  const at::ScalarType type = compute_type(x);
  if (!any_requires_grad({x, weight})) {
    if (x.is_cpu()) return rms_norm_cpu(x.to(type).contiguous(), weight.to(type).contiguous(), eps).to(x.scalar_type());
    if (has_rms_norm_kernel(x, weight)) return cuda_backend().rms_norm(x.contiguous(), weight.contiguous(), eps);
  }
  return at::rms_norm(x.to(type), {x.size(-1)}, weight.to(type), eps).to(x.scalar_type());
}

}  // namespace distil_xlstm::ops
