// The causal convolution on CPU tensors.
#include "ops/causal_conv_forms.h"
#include "ops/cpu_glue.h"

namespace distil_xlstm::ops {

CausalConvOutput causal_conv_forward_cpu(const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                         const Tensor& is_start_BS, bool has_silu) {
  const Profiled profiled("distil_xlstm::causal_conv");
  CausalConvOutput out{at::empty_like(x_BSF), at::empty_like(initial_BJF)};
  const Tensor weight_KF = weight_FK.t().contiguous();
  with_type(x_BSF, [&](auto zero) {
    using T = decltype(zero);
    kernels::ConvArgs<T> args{.B = x_BSF.size(0),
                              .S = x_BSF.size(1),
                              .F = x_BSF.size(2),
                              .K = weight_FK.size(1),
                              .x_BSF = data<T>(x_BSF),
                              .weight_KF = data<T>(weight_KF),
                              .bias_F = data<T>(bias_F),
                              .initial_BJF = data<T>(initial_BJF),
                              .is_start_BS = starts(is_start_BS),
                              .y_BSF = data<T>(out.y_BSF),
                              .state_BJF = data<T>(out.state_BJF),
                              .has_silu = has_silu};
    at::parallel_for(0, args.B * divide_up(args.F, kernels::kConvFeatures), 1,
                     [&](int64_t begin, int64_t end) { cpu_kernels<T>().conv_forward(args, begin, end); });
  });
  return out;
}

CausalConvBackward causal_conv_backward_cpu(const Tensor& grad_y_BSF, const Tensor& grad_state_BJF, const Tensor& x_BSF,
                                            const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                            const Tensor& is_start_BS, bool has_silu) {
  const Profiled profiled("distil_xlstm::causal_conv_backward");
  const int64_t B = x_BSF.size(0), F = x_BSF.size(2), K = weight_FK.size(1);
  const Tensor weight_KF = weight_FK.t().contiguous();
  const Tensor grad_x = at::empty_like(x_BSF), grad_initial = at::empty_like(initial_BJF);
  const Tensor grad_weight_BKF = at::empty({B, K, F}, x_BSF.options()), grad_bias_BF = at::empty({B, F}, x_BSF.options());
  with_type(x_BSF, [&](auto zero) {
    using T = decltype(zero);
    const kernels::ConvArgs<T> args{.B = B,
                                    .S = x_BSF.size(1),
                                    .F = F,
                                    .K = K,
                                    .x_BSF = data<T>(x_BSF),
                                    .weight_KF = data<T>(weight_KF),
                                    .bias_F = data<T>(bias_F),
                                    .initial_BJF = data<T>(initial_BJF),
                                    .is_start_BS = starts(is_start_BS),
                                    .grad_y_BSF = data<T>(grad_y_BSF),
                                    .grad_state_BJF = data<T>(grad_state_BJF),
                                    .grad_x_BSF = data<T>(grad_x),
                                    .grad_initial_BJF = data<T>(grad_initial),
                                    .grad_weight_BKF = data<T>(grad_weight_BKF),
                                    .grad_bias_BF = data<T>(grad_bias_BF),
                                    .has_silu = has_silu};
    run_tasks<T>(B * divide_up(F, kernels::kConvFeatures), cpu_kernels<T>().conv_workspace(args),
                 [&](int64_t begin, int64_t end, T* workspace) { cpu_kernels<T>().conv_backward(args, begin, end, workspace); });
  });
  return {grad_x, grad_weight_BKF.sum(0).t(), grad_bias_BF.sum(0), grad_initial};
}

}  // namespace distil_xlstm::ops
