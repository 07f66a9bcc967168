#include "ops/linear.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "kernels/cpu/kernels.h"
#include "ops/internal.h"
#include "ops/linear_forms.h"
#include "ops/profiled.h"

namespace distil_xlstm::ops {
namespace {

void check(const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E) {
  check_rank("linear: weight_EK", weight_EK, 2);
  if (!x.defined() || x.dim() == 0) throw ShapeError("linear: x needs at least one dimension");
  check_shape("linear: weight_EK", weight_EK, {weight_EK.size(0), x.size(-1)});
  if (bias_E.defined()) check_shape("linear: bias_E", bias_E, {weight_EK.size(0)});
}

template <typename T>
void matvec(const Tensor& x_K, const Tensor& weight_EK, const Tensor& bias_E, const Tensor& y_E, bool adds) {
  constexpr int64_t kWeightsPerTask = 16384;
  const int64_t K = weight_EK.size(1);
  const kernels::MatvecArgs<T> args{.K = K,
                                    .w_row = weight_EK.stride(0),
                                    .w_EK = weight_EK.const_data_ptr<T>(),
                                    .x_K = x_K.const_data_ptr<T>(),
                                    .bias_E = bias_E.defined() ? bias_E.const_data_ptr<T>() : nullptr,
                                    .y_E = y_E.mutable_data_ptr<T>(),
                                    .adds = adds};
  at::parallel_for(0, weight_EK.size(0), std::max<int64_t>(kWeightsPerTask / std::max<int64_t>(K, 1), 1),
                   [&](int64_t begin, int64_t end) { kernels::cpu_kernels<T>().matvec(args, begin, end); });
}

void run_matvec(const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E, const Tensor& y, bool adds) {
  const Profiled profiled("distil_xlstm::matvec");
  const Tensor x_K = x.contiguous(), bias = bias_E.defined() ? bias_E.to(x.scalar_type()).contiguous() : Tensor();
  x.scalar_type() == at::kDouble ? matvec<double>(x_K, weight_EK, bias, y, adds) : matvec<float>(x_K, weight_EK, bias, y, adds);
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight_in, const std::optional<Tensor>& converted,
                        const std::optional<Tensor>& bias) {
    const Tensor weight = in_type(weight_in, converted, x.scalar_type());
    ctx->save_for_backward({weight_in.requires_grad() ? x : Tensor(), x.requires_grad() ? weight : Tensor()});
    ctx->saved_data["weight_type"] = static_cast<int64_t>(weight_in.scalar_type());
    if (bias && bias->requires_grad()) ctx->saved_data["bias_type"] = static_cast<int64_t>(bias->scalar_type());
    return at::linear(x, weight, bias ? as_optional(bias->to(x.scalar_type())) : std::nullopt);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1];
    const Tensor grad_NE = grads[0].reshape({-1, grads[0].size(-1)});
    variable_list out(4);
    if (weight.defined()) out[0] = at::matmul(grads[0], weight);
    if (x.defined()) {
      const Tensor x_NK = x.reshape({-1, x.size(-1)});
      const auto type = static_cast<at::ScalarType>(ctx->saved_data["weight_type"].toInt());
      out[1] = at::empty({grad_NE.size(1), x_NK.size(1)}, x.options().dtype(type));
      weight_gradient_out(out[1], grad_NE, x_NK);
    }
    const auto bias_type = ctx->saved_data.find("bias_type");
    if (bias_type != ctx->saved_data.end()) out[3] = grad_NE.sum(0, false, static_cast<at::ScalarType>(bias_type->second.toInt()));
    return out;
  }
};

struct WideLinearFunction : torch::autograd::Function<WideLinearFunction> {
  static bool has_half_products(const Tensor& x, const Tensor& weight) {
    return x.is_cuda() && c10::elementSize(x.scalar_type()) == 2 && weight.scalar_type() == at::kFloat;
  }

  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E) {
    ctx->save_for_backward({x, weight_EK});
    if (!has_half_products(x, weight_EK)) return at::linear(x.to(weight_EK.scalar_type()), weight_EK, bias_E);
    const Tensor out_NE = at::mm(x.reshape({-1, x.size(-1)}), weight_EK.to(x.scalar_type()).t(), at::kFloat).add_(bias_E);
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes.back() = weight_EK.size(0);
    return out_NE.view(sizes);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor x_NK = saved[0].reshape({-1, saved[0].size(-1)}), &weight_EK = saved[1];
    const Tensor grad_NE = grads[0].reshape({-1, weight_EK.size(0)}), grad_bias = grad_NE.sum(0);
    if (!has_half_products(x_NK, weight_EK)) {
      const Tensor wide_NK = x_NK.to(weight_EK.scalar_type());
      return {at::mm(grad_NE, weight_EK).to(x_NK.scalar_type()).view(saved[0].sizes()), at::mm(grad_NE.t(), wide_NK), grad_bias};
    }
    const Tensor half_NE = grad_NE.to(x_NK.scalar_type());
    return {at::mm(half_NE, weight_EK.to(x_NK.scalar_type())).view(saved[0].sizes()), at::mm(half_NE.t(), x_NK, at::kFloat), grad_bias};
  }
};

}  // namespace

Tensor wide_linear(const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E) {
  check(x, weight_EK, bias_E);
  check_device("linear: x", x, {weight_EK, bias_E});
  return WideLinearFunction::apply(x, weight_EK, bias_E);
}

Tensor linear_with_grad(const Tensor& x, const LinearWeight& weight_EK, const Tensor& bias_E) {
  check(x, weight_EK.weight, bias_E);
  check_device("linear: x", x, {weight_EK.weight, weight_EK.converted, bias_E});
  return LinearFunction::apply(x, weight_EK.weight, as_optional(weight_EK.converted), as_optional(bias_E));
}

bool has_matvec(const Tensor& x, const Tensor& weight_EK) {
  const bool is_wide = x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble;
  return x.is_cpu() && is_wide && weight_EK.is_cpu() && weight_EK.scalar_type() == x.scalar_type() && x.numel() == x.size(-1) &&
         weight_EK.numel() > 0 && weight_EK.stride(1) == 1;
}

Tensor linear_without_grad(const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E) {
  check(x, weight_EK, bias_E);
  const at::NoGradGuard no_grad;
  if (!has_matvec(x, weight_EK)) return bias_E.defined() ? at::linear(x, weight_EK, bias_E) : at::linear(x, weight_EK);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight_EK.size(0);
  const Tensor y = at::empty(sizes, x.options());
  run_matvec(x, weight_EK, bias_E, y, /*adds=*/false);
  return y;
}

void add_linear_(const Tensor& sum, const Tensor& x, const Tensor& weight_EK, const Tensor& bias_E) {
  check(x, weight_EK, bias_E);
  if (!sum.is_contiguous()) throw ShapeError("linear: sum must be contiguous");
  const at::NoGradGuard no_grad;
  const Tensor sum_NE = sum.view({-1, weight_EK.size(0)}), x_NK = x.reshape({-1, x.size(-1)});
  check_shape("linear: sum", sum_NE, {x_NK.size(0), weight_EK.size(0)});
  if (has_matvec(x, weight_EK) && sum.scalar_type() == x.scalar_type()) return run_matvec(x, weight_EK, bias_E, sum, /*adds=*/true);
  if (bias_E.defined()) sum_NE.add_(bias_E);
  sum_NE.addmm_(x_NK, weight_EK.t());
}

}  // namespace distil_xlstm::ops
