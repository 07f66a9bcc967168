#include "ops/norm.h"

#include <torch/csrc/autograd/custom_function.h>

#include <utility>

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

// Which norm it is: LayerNorm with the residual weight, or RMSNorm.
struct NormKind {
  bool is_rms = false;
  double eps = 1e-5;
};

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

// Without our CUDA kernels. On a CPU backward makes rstd again.
LayerNormForward rms_norm_forward_plain(const Tensor& x_NGK, const Tensor& weight_GK, double eps) {
  if (x_NGK.is_cpu()) return {rms_norm_cpu(x_NGK, weight_GK.flatten(), eps), Tensor(), Tensor(), Tensor()};
  const auto [y, rstd] = at::_fused_rms_norm(x_NGK, {x_NGK.size(2)}, weight_GK.flatten(), eps);
  return {y, Tensor(), rstd, Tensor()};
}

LayerNormBackward rms_norm_backward_plain(const Tensor& grad_NGK, const Tensor& x_NGK, const Tensor& weight_GK, const Tensor& rstd_NG,
                                          double eps) {
  const Tensor weight_K = weight_GK.flatten();
  if (x_NGK.is_cpu()) {
    auto [grad_x, grad_weight] = rms_norm_backward_cpu(grad_NGK, x_NGK, weight_K, eps);
    return {grad_x, grad_weight};
  }
  const auto [grad_x, grad_weight] = at::_fused_rms_norm_backward(grad_NGK, x_NGK, {x_NGK.size(2)}, rstd_NG, weight_K, {true, true});
  return {grad_x, grad_weight};
}

// `added` or undefined: what is normalized is then the sum of both, which the kernel makes where `added` has y's type.
LayerNormForward run_forward(const NormKind& kind, const Tensor& x, const Tensor& added, const Tensor& weight, int64_t num_groups,
                             at::ScalarType y_type) {
  const Tensor weight_GK = grouped_weight(x, weight, num_groups);
  if (uses_kernels(x, y_type)) {
    const bool adds = added.defined() && added.scalar_type() == y_type && input_type(x, y_type) == x.scalar_type();
    const Tensor sum = added.defined() && !adds ? (x + added).to(x.scalar_type()) : x;
    const Tensor x_NGK = grouped(sum, input_type(x, y_type), weight, num_groups);
    LayerNormForward out = cuda_backend().layer_norm_forward(x_NGK, adds ? grouped(added, y_type, weight, num_groups) : Tensor(), weight_GK,
                                                             kind.eps, y_type, kind.is_rms);
    if (!adds) out.sum_NGK = added.defined() ? sum : Tensor();
    return out;
  }
  const Tensor sum = added.defined() ? (x + added).to(x.scalar_type()) : x;
  const Tensor x_NGK = grouped(sum, input_type(x, y_type), weight, num_groups);
  LayerNormForward out;
  if (kind.is_rms) {
    out = rms_norm_forward_plain(x_NGK, weight_GK, kind.eps);
  } else {
    out = x.is_cpu() ? layer_norm_forward_cpu(x_NGK, weight_GK, kind.eps) : layer_norm_forward_aten(x_NGK, weight_GK, kind.eps, y_type);
  }
  out.y_NGK = out.y_NGK.to(y_type);
  if (added.defined()) out.sum_NGK = sum;
  return out;
}

// x (+ added) and its norm. Backward adds both gradients: where the others read the sum from here, nothing else adds what comes back to x.
struct NormFunction : torch::autograd::Function<NormFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& added, const Tensor& weight,
                               int64_t num_groups, int64_t dtype_index, bool is_rms, double eps) {
    const auto y_type = static_cast<at::ScalarType>(dtype_index);
    const LayerNormForward out = run_forward({is_rms, eps}, x, added.value_or(Tensor()), weight, num_groups, y_type);
    const Tensor sum = added ? out.sum_NGK.view(x.sizes()) : x.detach();
    // The input keeps its own type while it waits: half the memory for half-precision activations.
    ctx->save_for_backward({added ? sum : x, weight, out.mean_NG, out.rstd_NG});
    ctx->saved_data["num_groups"] = num_groups;
    ctx->saved_data["is_rms"] = is_rms;
    ctx->saved_data["eps"] = eps;
    if (added) ctx->saved_data["added_type"] = static_cast<int64_t>(added->scalar_type());
    ctx->set_materialize_grads(false);
    return {sum, out.y_NGK.view(x.sizes())};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const Tensor &x = s[0], &weight = s[1], &grad_sum = grads[0], &grad_y = grads[1];
    Tensor grad_x = grad_sum, grad_weight;
    if (grad_y.defined()) {
      const NormKind kind{ctx->saved_data["is_rms"].toBool(), ctx->saved_data["eps"].toDouble()};
      LayerNormBackward out = run_backward(kind, grad_sum, grad_y, x, weight, s[2], s[3], ctx->saved_data["num_groups"].toInt());
      grad_x = out.grad_x_NGK.view(x.sizes()).to(x.scalar_type());
      grad_weight = out.grad_weight_GK.view(weight.sizes()).to(weight.scalar_type());
    }
    const auto added_type = ctx->saved_data.find("added_type");
    const Tensor grad_added = added_type != ctx->saved_data.end() && grad_x.defined()
                                  ? grad_x.to(static_cast<at::ScalarType>(added_type->second.toInt()))
                                  : Tensor();
    return {grad_x, grad_added, grad_weight, Tensor(), Tensor(), Tensor(), Tensor()};
  }

  static LayerNormBackward run_backward(const NormKind& kind, const Tensor& grad_sum, const Tensor& grad_y, const Tensor& x,
                                        const Tensor& weight, const Tensor& mean, const Tensor& rstd, int64_t num_groups) {
    const at::ScalarType y_type = grad_y.scalar_type();
    const bool has_kernel = uses_kernels(x, y_type);
    const Tensor x_NGK = grouped(x, input_type(x, y_type), weight, num_groups), weight_GK = grouped_weight(x, weight, num_groups);
    const Tensor grad_NGK = grouped(grad_y, has_kernel ? y_type : x_NGK.scalar_type(), weight, num_groups);
    const Tensor residual_NGK = grad_sum.defined() ? grouped(grad_sum, x_NGK.scalar_type(), weight, num_groups) : Tensor();
    if (has_kernel) return cuda_backend().layer_norm_backward(grad_NGK, residual_NGK, x_NGK, weight_GK, mean, rstd, kind.is_rms);
    LayerNormBackward out;
    if (kind.is_rms) {
      out = rms_norm_backward_plain(grad_NGK, x_NGK, weight_GK, rstd, kind.eps);
    } else {
      out = (x.is_cpu() ? layer_norm_backward_cpu : layer_norm_backward_aten)(grad_NGK, x_NGK, weight_GK, mean, rstd);
    }
    if (residual_NGK.defined()) out.grad_x_NGK.add_(residual_NGK);
    return out;
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
  if (any_requires_grad({x, weight})) {
    return NormFunction::apply(x, std::optional<Tensor>(), weight, num_groups, static_cast<int64_t>(y_type), false, NormKind().eps)[1];
  }
  at::NoGradGuard no_grad;
  return run_forward({}, x, Tensor(), weight, num_groups, y_type).y_NGK.view(x.sizes());
}

namespace {

AddNorm run_add_norm(const char* name, const NormKind& kind, const Tensor& x, const Tensor& added, const Tensor& weight,
                     std::optional<at::ScalarType> dtype) {
  check_weight(name, x, weight);
  if (added.defined() && added.sizes() != x.sizes())
    throw ShapeError("{}: added {} does not fit x {}: they must be equal", name, shape_text(added.sizes()), shape_text(x.sizes()));
  check_device(fmt::format("{}: x", name), x, {added});
  const at::ScalarType y_type = dtype.value_or(x.scalar_type());
  if (x.numel() == 0) return {x, x.to(y_type, /*non_blocking=*/false, /*copy=*/true)};
  if (any_requires_grad({x, added, weight})) {
    const variable_list out = NormFunction::apply(x, as_optional(added), weight, 1, static_cast<int64_t>(y_type), kind.is_rms, kind.eps);
    return {out[0], out[1]};
  }
  at::NoGradGuard no_grad;
  const LayerNormForward out = run_forward(kind, x, added, weight, 1, y_type);
  return {added.defined() ? out.sum_NGK.view(x.sizes()) : x, out.y_NGK.view(x.sizes())};
}

}  // namespace

AddNorm add_norm(const Tensor& x, const Tensor& added, const Tensor& weight, std::optional<at::ScalarType> dtype) {
  return run_add_norm("add_norm", {}, x, added, weight, dtype);
}

AddNorm add_rms_norm(const Tensor& x, const Tensor& added, const Tensor& weight, double eps, std::optional<at::ScalarType> dtype) {
  return run_add_norm("add_rms_norm", {.is_rms = true, .eps = eps}, x, added, weight, dtype);
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  check_weight("rms_norm", x, weight);
  if (x.numel() == 0) return x.clone();
  const at::ScalarType type = compute_type(x);
  if (!any_requires_grad({x, weight})) {
    if (x.is_cpu()) return rms_norm_cpu(x.to(type).contiguous(), weight.to(type).contiguous(), eps).to(x.scalar_type());
    if (has_rms_norm_kernel(x, weight)) return cuda_backend().rms_norm(x.contiguous(), weight.contiguous(), eps, /*copies=*/false).first;
  }
  return add_rms_norm(x, {}, weight, eps).normed;
}

std::pair<Tensor, Tensor> rms_norm_and_copy(const Tensor& x, const Tensor& weight, double eps) {
  check_weight("rms_norm", x, weight);
  if (x.numel() > 0 && !any_requires_grad({x, weight}) && has_rms_norm_kernel(x, weight))
    return cuda_backend().rms_norm(x.contiguous(), weight.contiguous(), eps, /*copies=*/true);
  return {rms_norm(x, weight, eps), x.clone()};
}

bool StateSum::add(const Tensor& state, bool is_last) {
  const bool may_wait = has_cuda_kernels(state) && state.is_contiguous() && state.numel() > 0;
  const bool fits =
      waiting_.empty() || (waiting_.front().sizes() == state.sizes() && waiting_.front().scalar_type() == state.scalar_type());
  if (!may_wait || !fits) add_waiting();  // in their order
  if (!may_wait) {
    if (sum_.defined()) {
      sum_.add_(state);
    } else {
      sum_ = state.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    }
    return false;
  }
  waiting_.push_back(state);
  if (is_last || static_cast<int64_t>(waiting_.size()) == cuda_backend().max_summed_states) add_waiting();
  return !waiting_.empty();
}

Tensor StateSum::take() {
  add_waiting();
  return std::exchange(sum_, Tensor());
}

void StateSum::add_waiting() {
  if (!waiting_.empty()) cuda_backend().add_states(sum_, waiting_);
  waiting_.clear();
}

}  // namespace distil_xlstm::ops
