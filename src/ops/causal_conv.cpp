#include "ops/causal_conv.h"

#include <torch/csrc/autograd/custom_function.h>

#include "ops/causal_conv_forms.h"
#include "ops/cuda_backend.h"
#include "ops/internal.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Arguments {
  Tensor x_BSF, weight_FK, bias_F, initial_BJF, is_start_BS;
  bool has_silu = true;
};

bool uses_kernels(const Tensor& x, int64_t taps) {
  return has_cuda_kernels(x) && taps <= cuda_backend().max_taps;
}

// Without a bias there is no SiLU either.
Arguments prepared(const Tensor& x, const Tensor& weight_F1K, const Tensor& bias, const Tensor& initial, const Tensor& is_start) {
  const at::ScalarType type = compute_type(x), io_type = uses_kernels(x, weight_F1K.size(2)) ? activation_type(x) : type;
  const bool needs_initial = initial.defined() || !uses_kernels(x, weight_F1K.size(2));
  return {x.to(io_type).contiguous(),
          weight_F1K.squeeze(1).to(type).contiguous(),
          or_zeros(bias, {x.size(2)}, x.options().dtype(type)),
          needs_initial ? or_zeros(initial, {x.size(0), weight_F1K.size(2) - 1, x.size(2)}, x.options().dtype(io_type)) : Tensor(),
          is_start.defined() ? is_start.to(x.device(), at::kByte).contiguous() : Tensor(),
          bias.defined()};
}

CausalConvOutput run_forward(const Arguments& a) {
  const auto run = a.x_BSF.is_cpu()                             ? causal_conv_forward_cpu
                   : uses_kernels(a.x_BSF, a.weight_FK.size(1)) ? cuda_backend().causal_conv_forward
                                                                : causal_conv_forward_aten;
  return run(a.x_BSF, a.weight_FK, a.bias_F, a.initial_BJF, a.is_start_BS, a.has_silu);
}

struct CausalConvFunction : torch::autograd::Function<CausalConvFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                               const std::optional<Tensor>& initial, const std::optional<Tensor>& is_start) {
    const Arguments a = prepared(x, weight, bias.value_or(Tensor()), initial.value_or(Tensor()), is_start.value_or(Tensor()));
    const CausalConvOutput out = run_forward(a);
    ctx->save_for_backward({a.x_BSF, a.weight_FK, a.bias_F, a.initial_BJF, a.is_start_BS});
    ctx->saved_data["has_initial"] = initial.has_value();
    ctx->saved_data["has_silu"] = a.has_silu;
    ctx->set_materialize_grads(false);
    ctx->saved_data["types"] = std::vector<int64_t>{int64_t(x.scalar_type()), int64_t(weight.scalar_type()),
                                                    int64_t(bias ? bias->scalar_type() : weight.scalar_type()),
                                                    int64_t(initial ? initial->scalar_type() : x.scalar_type())};
    return {out.y_BSF.to(x.scalar_type()), out.state_BJF.to(x.scalar_type()), x.detach()};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const Tensor &x = s[0], &initial = s[3];
    // A kernel without an initial state needs no gradient of the final one either, where nobody gave any.
    const bool needs_state = initial.defined() || grads[1].defined();
    const std::vector<int64_t> state_shape{x.size(0), s[1].size(1) - 1, x.size(2)};
    const Tensor grad_y = or_zeros(grads[0], x.sizes(), x.options()),
                 grad_state = needs_state ? or_zeros(grads[1], state_shape, x.options()) : Tensor(),
                 residual = grads[2].defined() ? grads[2].to(x.scalar_type()).contiguous() : Tensor();
    const bool has_silu = ctx->saved_data["has_silu"].toBool();
    const CausalConvBackward g = run_backward(grad_y, grad_state, residual, {x, s[1], s[2], initial, s[4], has_silu});
    const auto types = ctx->saved_data["types"].toIntVector();
    const auto as = [&](const Tensor& grad, int index) { return grad.to(static_cast<at::ScalarType>(types[index])); };
    return {as(g.grad_x_BSF, 0), as(g.grad_weight_FK.unsqueeze(1), 1), has_silu ? as(g.grad_bias_F, 2) : Tensor(),
            ctx->saved_data["has_initial"].toBool() ? as(g.grad_initial_BJF, 3) : Tensor(), Tensor()};
  }

  static CausalConvBackward run_backward(const Tensor& grad_y, const Tensor& grad_state, const Tensor& residual, const Arguments& a) {
    if (!a.x_BSF.is_cpu() && uses_kernels(a.x_BSF, a.weight_FK.size(1)))
      return cuda_backend().causal_conv_backward(grad_y, grad_state, residual, a.x_BSF, a.weight_FK, a.bias_F, a.initial_BJF, a.is_start_BS,
                                                 a.has_silu);
    const auto run = a.x_BSF.is_cpu() ? causal_conv_backward_cpu : causal_conv_backward_aten;
    CausalConvBackward g = run(grad_y, grad_state, a.x_BSF, a.weight_FK, a.bias_F, a.initial_BJF, a.is_start_BS, a.has_silu);
    if (residual.defined()) g.grad_x_BSF.add_(residual);
    return g;
  }
};

CausalConvOutput run(const std::string& name, const Tensor& x_BSF, const Tensor& weight_F1K, const Tensor& bias_F,
                     const Tensor& initial_state_BJF, const Tensor& is_start_BS) {
  check_rank(name + ": x_BSF", x_BSF, 3);
  check_rank(name + ": weight_F1K", weight_F1K, 3);
  const int64_t B = x_BSF.size(0), S = x_BSF.size(1), F = x_BSF.size(2), K = weight_F1K.size(2);
  if (x_BSF.numel() == 0 || K == 0)
    throw ShapeError("{}: x_BSF {}, weight_F1K {}: no dimension may be 0", name, shape_text(x_BSF.sizes()), shape_text(weight_F1K.sizes()));
  check_shape(name + ": weight_F1K", weight_F1K, {F, 1, K});
  if (bias_F.defined()) check_shape(name + ": bias_F", bias_F, {F});
  check_device(name + ": x_BSF", x_BSF, {weight_F1K, bias_F, initial_state_BJF});
  if (initial_state_BJF.defined()) check_shape(name + ": initial_state_BJF", initial_state_BJF, {B, K - 1, F});
  if (is_start_BS.defined()) check_shape(name + ": is_start_BS", is_start_BS, {B, S});
  if (any_requires_grad({x_BSF, weight_F1K, bias_F, initial_state_BJF})) {
    const variable_list out =
        CausalConvFunction::apply(x_BSF, weight_F1K, as_optional(bias_F), as_optional(initial_state_BJF), as_optional(is_start_BS));
    return {out[0], out[1], out[2]};
  }
  at::NoGradGuard no_grad;
  const CausalConvOutput out = run_forward(prepared(x_BSF, weight_F1K, bias_F, initial_state_BJF, is_start_BS));
  return {out.y_BSF.to(x_BSF.scalar_type()), out.state_BJF.to(x_BSF.scalar_type()), x_BSF};
}

}  // namespace

CausalConvOutput causal_conv_silu(const Tensor& x_BSF, const Tensor& weight_F1K, const Tensor& bias_F, const Tensor& initial_state_BJF,
                                  const Tensor& is_start_BS) {
  if (!bias_F.defined()) throw ShapeError("causal_conv_silu: bias_F is not given");
  return run("causal_conv_silu", x_BSF, weight_F1K, bias_F, initial_state_BJF, is_start_BS);
}

CausalConvOutput causal_conv(const Tensor& x_BSF, const Tensor& weight_F1K, const Tensor& initial_state_BJF, const Tensor& is_start_BS) {
  return run("causal_conv", x_BSF, weight_F1K, Tensor(), initial_state_BJF, is_start_BS);
}

}  // namespace distil_xlstm::ops
