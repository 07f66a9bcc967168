#include "ops/gated.h"

#include <torch/csrc/autograd/custom_function.h>

#include <array>

#include "ops/blocks_cpu.h"
#include "ops/cuda_backend.h"
#include "ops/gated_forms.h"
#include "ops/internal.h"
#include "ops/linear.h"
#include "ops/linear_forms.h"

namespace distil_xlstm::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SplitLinearFunction : torch::autograd::Function<SplitLinearFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x_in, const Tensor& weight_in, const std::optional<Tensor>& converted,
                               const std::optional<Tensor>& bias, int64_t dtype_index) {
    const auto dtype = static_cast<at::ScalarType>(dtype_index);
    const Tensor x = x_in.to(dtype);
    const Tensor weight = in_type(weight_in, converted, dtype);
    const int64_t half = weight.size(0) / 2;
    variable_list out(2);
    for (int64_t i = 0; i < 2; ++i) {
      const Tensor part_PD = weight.narrow(0, i * half, half);
      const Tensor part_bias = bias ? bias->to(dtype).narrow(0, i * half, half) : Tensor();
      Tensor& part = out[static_cast<size_t>(i)];
      if (has_matvec(x, part_PD)) {
        part = linear_without_grad(x, part_PD, part_bias);
      } else {
        part = bias ? at::addmm(part_bias, x, part_PD.t()) : at::mm(x, part_PD.t());
      }
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
    const auto weight_type = static_cast<at::ScalarType>(types[1]);
    const Tensor grad_weight = at::empty(weight.sizes(), weight.options().dtype(weight_type));
    for (int64_t i = 0; i < 2; ++i) weight_gradient_out(grad_weight.narrow(0, i * half, half), grads[static_cast<size_t>(i)], x);
    const Tensor grad_x = at::mm(grads[0], weight.narrow(0, 0, half)).addmm_(grads[1], weight.narrow(0, half, half));
    Tensor grad_bias;
    if (ctx->saved_data["has_bias"].toBool())
      grad_bias = at::cat({grads[0].sum(0, false, weight_type), grads[1].sum(0, false, weight_type)});
    return {grad_x.to(static_cast<at::ScalarType>(types[0])), grad_weight, {}, grad_bias, {}};
  }
};

struct ResidualLinearFunction : torch::autograd::Function<ResidualLinearFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& residual, const Tensor& x_in, const Tensor& weight_in,
                        const std::optional<Tensor>& converted, const std::optional<Tensor>& bias, int64_t dtype_index) {
    const auto dtype = static_cast<at::ScalarType>(dtype_index);
    const Tensor x = x_in.to(dtype), weight = in_type(weight_in, converted, dtype);
    ctx->save_for_backward({x, weight});
    ctx->saved_data["types"] =
        std::vector<int64_t>{static_cast<int64_t>(x_in.scalar_type()), static_cast<int64_t>(weight_in.scalar_type())};
    ctx->saved_data["has_bias"] = bias.has_value();
    const auto cast_bias = bias ? as_optional(bias->to(dtype)) : std::nullopt;
    if (dtype != residual.scalar_type()) return residual + at::linear(x, weight, cast_bias);
    if (has_matvec(x, weight)) {
      const Tensor out = residual.clone(at::MemoryFormat::Contiguous);
      add_linear_(out, x, weight, cast_bias.value_or(Tensor()));
      return out;
    }
    const Tensor sum = at::addmm(residual, x, weight.t());
    return cast_bias ? sum.add_(*cast_bias) : sum;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto types = ctx->saved_data["types"].toIntVector();
    const Tensor &x = saved[0], &weight = saved[1];
    const auto weight_type = static_cast<at::ScalarType>(types[1]);
    const Tensor grad = grads[0].to(x.scalar_type());
    const Tensor grad_weight = at::empty(weight.sizes(), weight.options().dtype(weight_type));
    weight_gradient_out(grad_weight, grad, x);
    Tensor grad_bias;
    if (ctx->saved_data["has_bias"].toBool()) grad_bias = grads[0].sum(0, false, weight_type);
    return {grads[0], at::mm(grad, weight).to(static_cast<at::ScalarType>(types[0])), grad_weight, {}, grad_bias, {}};
  }
};

constexpr double kSeluAlpha = 1.6732632423543772;
constexpr double kSeluScale = 1.0507009873554805;

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

// One type throughout where they agree, float32 where float16 and bfloat16 meet.
at::ScalarType working_type(const Tensor& h, const Tensor& c, const Tensor& z) {
  const bool is_uniform = h.scalar_type() == c.scalar_type() && c.scalar_type() == z.scalar_type();
  return is_uniform ? z.scalar_type() : compute_type(z);
}

}  // namespace

Tensor gated_activation_aten(const Tensor& gate_NP, const Tensor& value_NP, Activation act) {
  return activate(act, gate_NP).mul_(value_NP);
}

std::pair<Tensor, Tensor> gated_activation_backward_aten(const Tensor& grad_NP, const Tensor& gate_NP, const Tensor& value_NP,
                                                         Activation act) {
  return {activation_backward(act, grad_NP * value_NP, gate_NP), activate(act, gate_NP).mul_(grad_NP)};
}

Tensor skip_gate_aten(const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF, const Tensor& z_NF) {
  const at::ScalarType type = working_type(h_NF, c_NF, z_NF);
  const Tensor sum = at::addcmul(h_NF.to(type), c_NF.to(type), skip_F.to(type));
  return sum.mul_(at::silu(z_NF)).to(z_NF.scalar_type());
}

SkipGateGradients skip_gate_backward_aten(const Tensor& grad_NF, const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF,
                                          const Tensor& z_NF) {
  const at::ScalarType type = working_type(h_NF, c_NF, z_NF);
  const Tensor h = h_NF.to(type), skip = skip_F.to(type), c = c_NF.to(type), z = z_NF.to(type), grad = grad_NF.to(type);
  const Tensor grad_sum = grad * at::silu(z);
  const Tensor grad_z = at::silu_backward(grad * at::addcmul(h, c, skip), z);
  const Tensor grad_skip = (grad_sum * c).sum(0, false, skip_F.scalar_type());
  return {grad_sum.to(h_NF.scalar_type()), grad_skip, (grad_sum * skip).to(c_NF.scalar_type()), grad_z.to(z_NF.scalar_type())};
}

namespace {

bool has_activation_kernel(const Tensor& gate, const Tensor& value) {
  return has_cuda_kernels(gate) && value.scalar_type() == gate.scalar_type() && gate.dim() > 0 && gate.numel() > 0;
}

Tensor swiglu_without_grad(const Tensor& gate_up) {
  if (gate_up.numel() > 0 && has_cuda_kernels(gate_up)) return cuda_backend().swiglu(gate_up.contiguous());
  if (gate_up.numel() > 0 && has_swiglu_cpu(gate_up)) return swiglu_cpu(gate_up);
  const auto halves = gate_up.chunk(2, -1);
  return at::silu(halves[0]).mul_(halves[1]);
}

bool has_skip_gate_kernel(const Tensor& h, const Tensor& c, const Tensor& z) {
  const bool has_cell_type = h.scalar_type() == z.scalar_type() || (h.scalar_type() == at::kBFloat16 && z.scalar_type() == at::kHalf);
  return has_cuda_kernels(z) && has_cell_type && c.scalar_type() == z.scalar_type() && z.numel() > 0;
}

// Saves only its inputs: recomputing the activation in backward costs less than keeping it.
struct GatedActivationFunction : torch::autograd::Function<GatedActivationFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& value, int64_t act_index) {
    ctx->save_for_backward({gate, value});
    ctx->saved_data["act"] = act_index;
    const auto act = static_cast<Activation>(act_index);
    if (has_activation_kernel(gate, value)) return cuda_backend().gated_activation(gate.contiguous(), value.contiguous(), act);
    if (act == Activation::gelu && has_gelu_gate_cpu(gate, value)) return gelu_gate_cpu(gate, value);
    if (act == Activation::sigmoid && has_sigmoid_gate_cpu(gate, value)) return sigmoid_gate_cpu(gate, value);
    return gated_activation_aten(gate, value, act);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto act = static_cast<Activation>(ctx->saved_data["act"].toInt());
    const auto [grad_gate, grad_value] = run_backward(grads[0], saved[0], saved[1], act);
    return {grad_gate, grad_value, {}};
  }

  static std::pair<Tensor, Tensor> run_backward(const Tensor& grad, const Tensor& gate, const Tensor& value, Activation act) {
    if (has_activation_kernel(gate, value))
      return cuda_backend().gated_activation_backward(grad.contiguous(), gate.contiguous(), value.contiguous(), act);
    if (act == Activation::gelu && has_gelu_gate_cpu(gate, value)) return gelu_gate_backward_cpu(grad, gate, value);
    if (act == Activation::sigmoid && has_sigmoid_gate_cpu(gate, value)) return sigmoid_gate_backward_cpu(grad, gate, value);
    return gated_activation_backward_aten(grad, gate, value, act);
  }
};

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate_up_in) {
    const Tensor gate_up = gate_up_in.contiguous();
    ctx->save_for_backward({gate_up});
    return swiglu_without_grad(gate_up);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor gate_up = ctx->get_saved_variables()[0], grad = grads[0].contiguous();
    if (gate_up.numel() == 0) return {at::zeros_like(gate_up)};
    if (has_cuda_kernels(gate_up)) return {cuda_backend().swiglu_backward(grad, gate_up)};
    if (has_swiglu_cpu(gate_up)) return {swiglu_backward_cpu(grad, gate_up)};
    const auto halves = gate_up.chunk(2, -1);
    return {at::cat({at::silu_backward(grad * halves[1], halves[0]), grad * at::silu(halves[0])}, -1)};
  }
};

struct SkipGateFunction : torch::autograd::Function<SkipGateFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& h, const Tensor& skip, const Tensor& c, const Tensor& z) {
    ctx->save_for_backward({h, skip, c, z});
    if (has_skip_gate_kernel(h, c, z))
      return cuda_backend().skip_gate(h.contiguous(), skip.to(at::kFloat).contiguous(), c.contiguous(), z.contiguous());
    if (has_skip_gate_cpu(h, c, z)) return skip_gate_cpu(h, skip.to(working_type(h, c, z)).contiguous(), c, z);
    return skip_gate_aten(h, skip, c, z);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const SkipGateGradients out = run_backward(grads[0], saved[0], saved[1], saved[2], saved[3]);
    return {out.h_NF, out.skip_F.to(saved[1].scalar_type()), out.c_NF, out.z_NF};
  }

  static SkipGateGradients run_backward(const Tensor& grad, const Tensor& h, const Tensor& skip, const Tensor& c, const Tensor& z) {
    if (has_skip_gate_kernel(h, c, z))
      return cuda_backend().skip_gate_backward(grad.contiguous(), h.contiguous(), skip.to(at::kFloat).contiguous(), c.contiguous(),
                                               z.contiguous());
    if (has_skip_gate_cpu(h, c, z)) return skip_gate_backward_cpu(grad, h, skip.to(working_type(h, c, z)).contiguous(), c, z);
    return skip_gate_backward_aten(grad, h, skip, c, z);
  }
};

void check_converted(std::string_view what, const LinearWeight& w) {
  if (w.converted.defined()) check_shape(what, w.converted, {w.weight.size(0), w.weight.size(1)});
  check_device(what, w.weight, {w.converted});
}

}  // namespace

std::pair<Tensor, Tensor> split_linear(const Tensor& x_ND, const LinearWeight& w_QD, const Tensor& bias_Q, at::ScalarType dtype) {
  const Tensor& weight_QD = w_QD.weight;
  check_rank("split_linear: x_ND", x_ND, 2);
  check_rank("split_linear: weight_QD", weight_QD, 2);
  check_shape("split_linear: weight_QD", weight_QD, {weight_QD.size(0) / 2 * 2, x_ND.size(1)});
  if (bias_Q.defined()) check_shape("split_linear: bias_Q", bias_Q, {weight_QD.size(0)});
  check_converted("split_linear: converted", w_QD);
  auto out = SplitLinearFunction::apply(x_ND, weight_QD, as_optional(w_QD.converted), as_optional(bias_Q), static_cast<int64_t>(dtype));
  return {std::move(out[0]), std::move(out[1])};
}

Tensor residual_linear(const Tensor& residual_ND, const Tensor& x_NP, const LinearWeight& w_DP, const Tensor& bias_D,
                       at::ScalarType dtype) {
  const Tensor& weight_DP = w_DP.weight;
  check_rank("residual_linear: x_NP", x_NP, 2);
  check_shape("residual_linear: weight_DP", weight_DP, {residual_ND.size(-1), x_NP.size(1)});
  check_shape("residual_linear: residual_ND", residual_ND, {x_NP.size(0), weight_DP.size(0)});
  if (bias_D.defined()) check_shape("residual_linear: bias_D", bias_D, {weight_DP.size(0)});
  check_converted("residual_linear: converted", w_DP);
  return ResidualLinearFunction::apply(residual_ND, x_NP, weight_DP, as_optional(w_DP.converted), as_optional(bias_D),
                                       static_cast<int64_t>(dtype));
}

Tensor gated_activation(const Tensor& gate_NP, const Tensor& value_NP, Activation act) {
  if (gate_NP.sizes() != value_NP.sizes())
    throw ShapeError("gated_activation: gate {}, value {}: they must be equal", shape_text(gate_NP.sizes()), shape_text(value_NP.sizes()));
  check_device("gated_activation: gate", gate_NP, {value_NP});
  return GatedActivationFunction::apply(gate_NP, value_NP, static_cast<int64_t>(act));
}

Tensor swiglu(const Tensor& gate_up) {
  if (!gate_up.defined() || gate_up.dim() == 0 || gate_up.size(-1) % 2 != 0)
    throw ShapeError("swiglu: gate_up {}: the last dimension must hold two equal halves",
                     gate_up.defined() ? shape_text(gate_up.sizes()) : "not given");
  return any_requires_grad({gate_up}) ? SwigluFunction::apply(gate_up) : swiglu_without_grad(gate_up);
}

Tensor swiglu_product(const Tensor& x, const Tensor& weight_2IK) {
  check_rank("swiglu_product: weight_2IK", weight_2IK, 2);
  if (!x.defined() || x.dim() == 0) throw ShapeError("swiglu_product: x needs at least one dimension");
  check_shape("swiglu_product: weight_2IK", weight_2IK, {weight_2IK.size(0) / 2 * 2, x.size(-1)});
  check_device("swiglu_product: x", x, {weight_2IK});
  constexpr int64_t kMinRows = 512;  // fewer, as in decoding, leave most of the kernel's tiles empty: the library has shapes for them
  const bool may_have_kernel = has_cuda_kernels(x) && !any_requires_grad({x, weight_2IK}) && weight_2IK.scalar_type() == x.scalar_type() &&
                               x.numel() >= kMinRows * x.size(-1) && weight_2IK.numel() > 0;
  if (may_have_kernel) {
    const Tensor out = cuda_backend().swiglu_product(x.contiguous(), weight_2IK.contiguous());
    if (out.defined()) return out;
  }
  return swiglu(any_requires_grad({x, weight_2IK}) ? at::linear(x, weight_2IK) : linear_without_grad(x, weight_2IK));
}

Tensor skip_gate(const Tensor& h_NP, const Tensor& skip_P, const Tensor& c_NP, const Tensor& z_NP) {
  check_rank("skip_gate: h_NP", h_NP, 2);
  const int64_t N = h_NP.size(0), P = h_NP.size(1);
  check_shape("skip_gate: skip_P", skip_P, {P});
  check_shape("skip_gate: c_NP", c_NP, {N, P});
  check_shape("skip_gate: z_NP", z_NP, {N, P});
  check_device("skip_gate: h_NP", h_NP, {skip_P, c_NP, z_NP});
  return SkipGateFunction::apply(h_NP, skip_P, c_NP, z_NP);
}

}  // namespace distil_xlstm::ops
