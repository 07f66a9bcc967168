// Glue of causal convolutions.
#include "kernels/cuda/causal_conv.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

gpu::CausalConv conv_arguments(const Tensor& x, const Tensor& weight_FK, const Tensor& bias, const Tensor& initial, const Tensor& is_start,
                               bool has_silu) {
  return {.type = type_of(x),
          .B = int(x.size(0)),
          .S = int(x.size(1)),
          .F = int(x.size(2)),
          .K = int(weight_FK.size(1)),
          .x_BSF = pointer(x),
          .weight_FK = floats(weight_FK),
          .bias_F = floats(bias),
          .initial_BJF = pointer(initial),
          .is_start_BS = starts(is_start),
          .y_BSF = nullptr,
          .state_BJF = nullptr,
          .has_silu = has_silu};
}

CausalConvOutput causal_conv_forward_cuda(const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                          const Tensor& is_start_BS, bool has_silu) {
  const c10::cuda::CUDAGuard guard(x_BSF.device());
  CausalConvOutput out{at::empty_like(x_BSF), at::empty({x_BSF.size(0), weight_FK.size(1) - 1, x_BSF.size(2)}, x_BSF.options())};
  gpu::CausalConv args = conv_arguments(x_BSF, weight_FK, bias_F, initial_BJF, is_start_BS, has_silu);
  args.y_BSF = pointer(out.y_BSF);
  args.state_BJF = pointer(out.state_BJF);
  check(gpu::causal_conv_forward(args, c10::cuda::getCurrentCUDAStream()), "causal_conv forward, x_BSF", x_BSF);
  return out;
}

CausalConvBackward causal_conv_backward_cuda(const Tensor& grad_y_BSF, const Tensor& grad_state_BJF, const Tensor& grad_residual_BSF,
                                             const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                             const Tensor& is_start_BS, bool has_silu) {
  const c10::cuda::CUDAGuard guard(x_BSF.device());
  const int64_t B = x_BSF.size(0), S = x_BSF.size(1), F = x_BSF.size(2), K = weight_FK.size(1);
  const int64_t partial_sums = B * ((S + gpu::kConvChunk - 1) / gpu::kConvChunk);
  const auto wide = x_BSF.options().dtype(at::kFloat);
  const auto ready = [](const Tensor& x) { return x.defined() ? aligned(x) : x; };
  const Tensor grad_y = aligned(grad_y_BSF), grad_state = ready(grad_state_BJF), grad_residual = ready(grad_residual_BSF);
  const Tensor grad_x = at::empty_like(x_BSF), grad_initial = initial_BJF.defined() ? at::empty_like(initial_BJF) : Tensor();
  const gpu::CausalConv forward = conv_arguments(x_BSF, weight_FK, bias_F, initial_BJF, is_start_BS, has_silu);
  const Tensor grad_pre = gpu::causal_conv_holds_window(forward) ? Tensor() : at::empty({B, S, F}, wide);
  const Tensor grad_weight_PKF = at::empty({partial_sums, K, F}, wide), grad_bias_PF = at::empty({partial_sums, F}, wide);
  const gpu::CausalConvBackward args{.forward = forward,
                                     .grad_y_BSF = pointer(grad_y),
                                     .grad_state_BJF = pointer(grad_state),
                                     .grad_residual_BSF = pointer(grad_residual),
                                     .grad_pre_BSF = floats(grad_pre),
                                     .grad_x_BSF = pointer(grad_x),
                                     .grad_initial_BJF = pointer(grad_initial),
                                     .grad_weight_PKF = floats(grad_weight_PKF),
                                     .grad_bias_PF = floats(grad_bias_PF)};
  check(gpu::causal_conv_backward(args, c10::cuda::getCurrentCUDAStream()), "causal_conv backward, x_BSF", x_BSF);
  return {grad_x, grad_weight_PKF.sum(0).t(), grad_bias_PF.sum(0), grad_initial};
}

}  // namespace

void register_causal_conv(CudaBackend& table) {
  table.causal_conv_forward = causal_conv_forward_cuda;
  table.causal_conv_backward = causal_conv_backward_cuda;
  table.max_taps = gpu::kConvMaxTaps;
}

}  // namespace distil_xlstm::ops
