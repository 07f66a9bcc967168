#include "ops/gated.h"

#include <torch/csrc/autograd/custom_function.h>

#include <array>

#include "ops/blocks_cpu.h"
#include "ops/cuda_backend.h"
#include "ops/internal.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SplitLinearFunction : torch::autograd::Function<SplitLinearFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x_in, const Tensor& weight_in, const std::optional<Tensor>& bias,
                               int64_t dtype_index) {
    const auto dtype = static_cast<at::ScalarType>(dtype_index);
    const Tensor x = x_in.to(dtype);
    const Tensor weight = weight_in.to(dtype);
    const int64_t half = weight.size(0) / 2;
    variable_list out(2);
    for (int64_t i = 0; i < 2; ++i) {
      const Tensor part_DP = weight.narrow(0, i * half, half).t();
      out[static_cast<size_t>(i)] = bias ? at::addmm(bias->to(dtype).narrow(0, i * half, half), x, part_DP) : at::mm(x, part_DP);
    }
    ctx->save_for_backward({x, weight});
    ctx->saved_data["types"] =
        std::vector<int64_t>{static_cast<int64_t>(x_in.scalar_type()), static_cast<int64_t>(weight_in.scalar_type())};
    ctx->saved_data["has_bias"] = bias.has_value();
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto types = ctx->saved_data["types"].toIntVector();
    const Tensor &x = saved[0], &weight = saved[1];
    const int64_t half = weight.size(0) / 2;
    const Tensor grad_weight = at::empty_like(weight);
    for (int64_t i = 0; i < 2; ++i) {
      Tensor part = grad_weight.narrow(0, i * half, half);
      at::mm_out(part, grads[static_cast<size_t>(i)].t(), x);
    }
    const Tensor grad_x = at::mm(grads[0], weight.narrow(0, 0, half)).addmm_(grads[1], weight.narrow(0, half, half));
    const auto weight_type = static_cast<at::ScalarType>(types[1]);
    Tensor grad_bias;
    if (ctx->saved_data["has_bias"].toBool())
      grad_bias = at::cat({grads[0].sum(0, false, weight_type), grads[1].sum(0, false, weight_type)});
    return {grad_x.to(static_cast<at::ScalarType>(types[0])), grad_weight.to(weight_type), grad_bias, {}};
  }
};

enum class Activation : int { gelu, relu, relu_squared, sigmoid, swish, selu };

constexpr double kSeluAlpha = 1.6732632423543772;
constexpr double kSeluScale = 1.0507009873554805;

Activation parse_activation(std::string_view name) {
  constexpr std::array<std::string_view, 6> names{"gelu", "relu", "relu^2", "sigmoid", "swish", "selu"};
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return static_cast<Activation>(i);
  }
  throw ValueError("gated_activation: act = \"{}\": must be one of {}", name, fmt::join(names, ", "));
}

Tensor activate(Activation act, const Tensor& x) {
  switch (act) {
    case Activation::gelu:
      return at::gelu(x, "none");
    case Activation::relu:
      return at::relu(x);
    case Activation::relu_squared:
      return at::relu(x).square_();
    case Activation::sigmoid:
      return at::sigmoid(x);
    case Activation::swish:
      return at::silu(x);
    case Activation::selu:
      return at::selu(x);
  }
  return {};
}

Tensor activation_backward(Activation act, const Tensor& grad, const Tensor& x) {
  switch (act) {
    case Activation::gelu:
      return at::gelu_backward(grad, x, "none");
    case Activation::relu:
      return at::threshold_backward(grad, x, 0);
    case Activation::relu_squared:
      return at::relu(x).mul_(2).mul_(grad);
    case Activation::sigmoid:
      return at::sigmoid_backward(grad, at::sigmoid(x));
    case Activation::swish:
      return at::silu_backward(grad, x);
    case Activation::selu:
      return at::elu_backward(grad, kSeluAlpha, kSeluScale, 1, /*is_result=*/false, x);
  }
  return {};
}

// Saves only its inputs: recomputing the activation in backward costs less than keeping it.
struct GatedActivationFunction : torch::autograd::Function<GatedActivationFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& value, int64_t act) {
    ctx->save_for_backward({gate, value});
    ctx->saved_data["act"] = act;
    const auto activation = static_cast<Activation>(act);
    if (activation == Activation::gelu && has_gelu_gate_cpu(gate, value)) return gelu_gate_cpu(gate, value);
    return activate(activation, gate).mul_(value);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate = saved[0], &value = saved[1];
    const auto act = static_cast<Activation>(ctx->saved_data["act"].toInt());
    if (act == Activation::gelu && has_gelu_gate_cpu(gate, value)) {
      const auto [grad_gate, grad_value] = gelu_gate_backward_cpu(grads[0], gate, value);
      return {grad_gate, grad_value, {}};
    }
    return {activation_backward(act, grads[0] * value, gate), activate(act, gate).mul_(grads[0]), {}};
  }
};

struct SkipGateFunction : torch::autograd::Function<SkipGateFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& h, const Tensor& skip, const Tensor& c, const Tensor& z) {
    ctx->save_for_backward({h, skip, c, z});
    const at::ScalarType type = working_type(h, c, z);
    if (has_skip_gate_cpu(h, c, z)) return skip_gate_cpu(h, skip.to(type).contiguous(), c, z);
    const Tensor sum = at::addcmul(h.to(type), c.to(type), skip.to(type));
    return sum.mul_(at::silu(z)).to(z.scalar_type());
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::ScalarType type = working_type(saved[0], saved[2], saved[3]);
    if (has_skip_gate_cpu(saved[0], saved[2], saved[3])) {
      const SkipGateGradients out = skip_gate_backward_cpu(grads[0], saved[0], saved[1].to(type).contiguous(), saved[2], saved[3]);
      return {out.h_NF, out.skip_F.to(saved[1].scalar_type()), out.c_NF, out.z_NF};
    }
    const Tensor h = saved[0].to(type), skip = saved[1].to(type), c = saved[2].to(type), z = saved[3].to(type);
    const Tensor grad = grads[0].to(type);
    const Tensor grad_sum = grad * at::silu(z);
    const Tensor grad_z = at::silu_backward(grad * at::addcmul(h, c, skip), z);
    const Tensor grad_skip = (grad_sum * c).sum(0, false, saved[1].scalar_type());
    return {grad_sum.to(saved[0].scalar_type()), grad_skip, (grad_sum * skip).to(saved[2].scalar_type()),
            grad_z.to(saved[3].scalar_type())};
  }

  // One type throughout where they agree, float32 where float16 and bfloat16 meet.
  static at::ScalarType working_type(const Tensor& h, const Tensor& c, const Tensor& z) {
    const bool is_uniform = h.scalar_type() == c.scalar_type() && c.scalar_type() == z.scalar_type();
    return is_uniform ? z.scalar_type() : compute_type(z);
  }
};

}  // namespace

std::pair<Tensor, Tensor> split_linear(const Tensor& x_ND, const Tensor& weight_QD, const Tensor& bias_Q, at::ScalarType dtype) {
  check_rank("split_linear: x_ND", x_ND, 2);
  check_rank("split_linear: weight_QD", weight_QD, 2);
  check_shape("split_linear: weight_QD", weight_QD, {weight_QD.size(0) / 2 * 2, x_ND.size(1)});
  if (bias_Q.defined()) check_shape("split_linear: bias_Q", bias_Q, {weight_QD.size(0)});
  auto out = SplitLinearFunction::apply(x_ND, weight_QD, as_optional(bias_Q), static_cast<int64_t>(dtype));
  return {std::move(out[0]), std::move(out[1])};
}

Tensor residual_linear(const Tensor& residual_ND, const Tensor& x_NP, const Tensor& weight_DP, const Tensor& bias_D, at::ScalarType dtype) {
  if (dtype == residual_ND.scalar_type()) {
    const Tensor sum = at::addmm(residual_ND, x_NP, weight_DP.t());
    return bias_D.defined() ? sum + bias_D : sum;
  }
  const Tensor product = at::linear(x_NP.to(dtype), weight_DP.to(dtype), bias_D.defined() ? as_optional(bias_D.to(dtype)) : std::nullopt);
  return residual_ND + product;
}

Tensor gated_activation(const Tensor& gate_NP, const Tensor& value_NP, std::string_view act) {
  const Activation activation = parse_activation(act);
  if (gate_NP.sizes() != value_NP.sizes())
    throw ShapeError("gated_activation: gate {}, value {}: they must be equal", shape_text(gate_NP.sizes()), shape_text(value_NP.sizes()));
  return GatedActivationFunction::apply(gate_NP, value_NP, static_cast<int64_t>(activation));
}

Tensor swiglu(const Tensor& gate_up) {
  if (!gate_up.defined() || gate_up.dim() == 0 || gate_up.size(-1) % 2 != 0)
    throw ShapeError("swiglu: gate_up {}: the last dimension must hold two equal halves",
                     gate_up.defined() ? shape_text(gate_up.sizes()) : "not given");
  const bool has_gradient = any_requires_grad({gate_up});
  if (!has_gradient && gate_up.numel() > 0 && has_cuda_kernels(gate_up) && cuda_backend().swiglu != nullptr)
    return cuda_backend().swiglu(gate_up.contiguous());
  const auto halves = gate_up.chunk(2, -1);
  return has_gradient ? at::silu(halves[0]) * halves[1] : at::silu(halves[0]).mul_(halves[1]);
}

Tensor skip_gate(const Tensor& h_NP, const Tensor& skip_P, const Tensor& c_NP, const Tensor& z_NP) {
  check_rank("skip_gate: h_NP", h_NP, 2);
  const int64_t N = h_NP.size(0), P = h_NP.size(1);
  check_shape("skip_gate: skip_P", skip_P, {P});
  check_shape("skip_gate: c_NP", c_NP, {N, P});
  check_shape("skip_gate: z_NP", z_NP, {N, P});
  return SkipGateFunction::apply(h_NP, skip_P, c_NP, z_NP);
}

}  // namespace distil_xlstm::ops
