// The norms on CPU tensors.
#include <algorithm>

#include "ops/cpu_glue.h"
#include "ops/norm_forms.h"

namespace distil_xlstm::ops {
namespace {

// Blocks of rows whose number does not depend on the threads, so that sums are the same on every machine.
constexpr int64_t kNormBlocks = 32;

template <typename T>
kernels::LayerNormArgs<T> norm_arguments(const Tensor& x_NGK, const Tensor& weight_GK) {
  kernels::LayerNormArgs<T> args{.N = x_NGK.size(0),
                                 .G = x_NGK.size(1),
                                 .K = x_NGK.size(2),
                                 .block_rows = divide_up(x_NGK.size(0), kNormBlocks),
                                 .eps = 0.0,
                                 .x_NGK = data<T>(x_NGK),
                                 .weight_GK = data<T>(weight_GK)};
  return args;
}

}  // namespace

LayerNormForward layer_norm_forward_cpu(const Tensor& x_NGK, const Tensor& weight_GK, double eps) {
  const Profiled profiled("distil_xlstm::layer_norm");
  const int64_t N = x_NGK.size(0), G = x_NGK.size(1);
  LayerNormForward out{at::empty_like(x_NGK), at::empty({N, G}, x_NGK.options()), at::empty({N, G}, x_NGK.options())};
  with_type(x_NGK, [&](auto zero) {
    using T = decltype(zero);
    auto args = norm_arguments<T>(x_NGK, weight_GK);
    args.eps = eps;
    args.y_NGK = data<T>(out.y_NGK);
    args.mean_NG = data<T>(out.mean_NG);
    args.rstd_NG = data<T>(out.rstd_NG);
    at::parallel_for(0, divide_up(N, args.block_rows), 1,
                     [&](int64_t begin, int64_t end) { cpu_kernels<T>().layer_norm_forward(args, begin, end); });
  });
  return out;
}

LayerNormBackward layer_norm_backward_cpu(const Tensor& grad_y_NGK, const Tensor& x_NGK, const Tensor& weight_GK, const Tensor& mean_NG,
                                          const Tensor& rstd_NG) {
  const Profiled profiled("distil_xlstm::layer_norm_backward");
  const Tensor grad_x = at::empty_like(x_NGK);
  Tensor grad_weight_PGK;
  with_type(x_NGK, [&](auto zero) {
    using T = decltype(zero);
    auto args = norm_arguments<T>(x_NGK, weight_GK);
    const int64_t blocks = divide_up(args.N, args.block_rows);
    grad_weight_PGK = at::empty({blocks, args.G, args.K}, x_NGK.options());
    args.mean_NG = data<T>(mean_NG);
    args.rstd_NG = data<T>(rstd_NG);
    args.grad_y_NGK = data<T>(grad_y_NGK);
    args.grad_x_NGK = data<T>(grad_x);
    args.grad_weight_PGK = data<T>(grad_weight_PGK);
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) { cpu_kernels<T>().layer_norm_backward(args, begin, end); });
  });
  return {grad_x, grad_weight_PGK.sum(0)};
}

Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps) {
  const Profiled profiled("distil_xlstm::rms_norm");
  const Tensor y = at::empty_like(x);
  const int64_t width = x.size(-1), rows = x.numel() / width;
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    at::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      cpu_kernels<T>().rms_norm(width, eps, data<T>(x), data<T>(weight), data<T>(y), begin, end);
    });
  });
  return y;
}

// Blocks of rows, each with a sum for the weight of its own, so that the bits do not depend on the number of threads.
std::pair<Tensor, Tensor> rms_norm_backward_cpu(const Tensor& grad_y, const Tensor& x, const Tensor& weight, double eps) {
  const Profiled profiled("distil_xlstm::rms_norm_backward");
  constexpr int64_t kBlockRows = 256;
  const int64_t width = x.size(-1), rows = x.numel() / width, blocks = divide_up(rows, kBlockRows);
  const Tensor grad_x = at::empty_like(x), sums = at::zeros({blocks, width}, x.options());
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        cpu_kernels<T>().rms_norm_backward(width, eps, data<T>(x), data<T>(weight), data<T>(grad_y), data<T>(grad_x),
                                           data<T>(sums) + block * width, block * kBlockRows, std::min((block + 1) * kBlockRows, rows));
      }
    });
  });
  return {grad_x, sums.sum(0)};
}

}  // namespace distil_xlstm::ops
