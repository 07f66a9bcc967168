// Glue of LayerNorm, and of RMSNorm with a gradient.
#include "kernels/cuda/layer_norm.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

gpu::LayerNorm norm_arguments(const Tensor& x_NGK, const Tensor& weight_GK, at::ScalarType y_type, bool is_rms) {
  gpu::LayerNorm args{};
  args.is_rms = is_rms;
  args.type = type_of(x_NGK);
  args.y_type = type_of(y_type);
  args.N = x_NGK.size(0);
  args.G = int(x_NGK.size(1));
  args.K = int(x_NGK.size(2));
  args.x_NGK = pointer(x_NGK);
  args.weight_GK = floats(weight_GK);
  return args;
}

LayerNormForward layer_norm_forward_cuda(const Tensor& x_NGK, const Tensor& added_NGK, const Tensor& weight_GK, double eps,
                                         at::ScalarType y_type, bool is_rms) {
  const c10::cuda::CUDAGuard guard(x_NGK.device());
  const auto wide = x_NGK.options().dtype(at::kFloat);
  LayerNormForward out{at::empty(x_NGK.sizes(), x_NGK.options().dtype(y_type)), at::empty({x_NGK.size(0), x_NGK.size(1)}, wide),
                       at::empty({x_NGK.size(0), x_NGK.size(1)}, wide), added_NGK.defined() ? at::empty_like(x_NGK) : Tensor()};
  gpu::LayerNorm args = norm_arguments(x_NGK, weight_GK, y_type, is_rms);
  args.added_NGK = pointer(added_NGK);
  args.sum_NGK = pointer(out.sum_NGK);
  args.eps = float(eps);
  args.y_NGK = pointer(out.y_NGK);
  args.mean_NG = floats(out.mean_NG);
  args.rstd_NG = floats(out.rstd_NG);
  check(gpu::layer_norm_forward(args, c10::cuda::getCurrentCUDAStream()), "norm forward, x_NGK", x_NGK);
  return out;
}

LayerNormBackward layer_norm_backward_cuda(const Tensor& grad_y_NGK, const Tensor& grad_residual_NGK, const Tensor& x_NGK,
                                           const Tensor& weight_GK, const Tensor& mean_NG, const Tensor& rstd_NG, bool is_rms) {
  const c10::cuda::CUDAGuard guard(x_NGK.device());
  const int64_t N = x_NGK.size(0), rows = gpu::norm_block_rows(N), partial_sums = (N + rows - 1) / rows;
  const Tensor grad_x = at::empty_like(x_NGK),
               grad_weight = at::empty({partial_sums, x_NGK.size(1), x_NGK.size(2)}, x_NGK.options().dtype(at::kFloat));
  gpu::LayerNorm args = norm_arguments(x_NGK, weight_GK, grad_y_NGK.scalar_type(), is_rms);
  args.mean_NG = floats(mean_NG);
  args.rstd_NG = floats(rstd_NG);
  args.grad_y_NGK = pointer(grad_y_NGK);
  args.grad_residual_NGK = pointer(grad_residual_NGK);
  args.grad_x_NGK = pointer(grad_x);
  args.grad_weight_PGK = floats(grad_weight);
  check(gpu::layer_norm_backward(args, c10::cuda::getCurrentCUDAStream()), "norm backward, x_NGK", x_NGK);
  return {grad_x, grad_weight.sum(0)};
}

}  // namespace

void register_layer_norm(CudaBackend& table) {
  table.layer_norm_forward = layer_norm_forward_cuda;
  table.layer_norm_backward = layer_norm_backward_cuda;
}

}  // namespace distil_xlstm::ops
