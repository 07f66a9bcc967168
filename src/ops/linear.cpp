#include "ops/linear.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "kernels/cpu/kernels.h"
#include "ops/internal.h"
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

}  // namespace

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
