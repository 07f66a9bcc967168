// Glue of q, k and v.
#include "kernels/cuda/blockdiag.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

// Copies where the kernels' accesses need them: the arguments point into these.
struct QkvTensors {
  Tensor c_NF, x_NF;
  QkvMaps maps;
};

QkvTensors qkv_tensors(const Tensor& c_NF, const Tensor& x_NF, const QkvMaps& maps) {
  QkvTensors out{aligned(c_NF), aligned(x_NF), maps};
  for (Tensor& weight : out.maps.weight_GOI) weight = aligned(weight);
  return out;
}

gpu::Blockdiag4 qkv_arguments(const QkvTensors& tensors, at::ScalarType out_dtype) {
  gpu::Blockdiag4 args{};
  args.type = type_of(tensors.c_NF);
  args.out_type = type_of(out_dtype);
  args.N = tensors.c_NF.size(0);
  args.G = int(tensors.maps.weight_GOI[0].size(0));
  args.c_NF = pointer(tensors.c_NF);
  args.x_NF = pointer(tensors.x_NF);
  for (size_t i = 0; i < 3; ++i) {
    args.weight_GOI[i] = floats(tensors.maps.weight_GOI[i]);
    args.bias_F[i] = floats(tensors.maps.bias_F[i]);
  }
  return args;
}

std::array<Tensor, 3> qkv_forward_cuda(const Tensor& c_NF, const Tensor& x_NF, const QkvMaps& maps, at::ScalarType out_dtype) {
  const c10::cuda::CUDAGuard guard(c_NF.device());
  const QkvTensors tensors = qkv_tensors(c_NF, x_NF, maps);
  gpu::Blockdiag4 args = qkv_arguments(tensors, out_dtype);
  std::array<Tensor, 3> out;
  for (size_t i = 0; i < 3; ++i) {
    out[i] = at::empty(c_NF.sizes(), c_NF.options().dtype(out_dtype));
    args.out_NF[i] = pointer(out[i]);
  }
  check(gpu::blockdiag4_forward(args, c10::cuda::getCurrentCUDAStream()), "qkv_projection forward, c_NF", c_NF);
  return out;
}

QkvBackward qkv_backward_cuda(const std::array<Tensor, 3>& grad_NF, const Tensor& grad_residual_NF, const Tensor& c_NF, const Tensor& x_NF,
                              const QkvMaps& maps) {
  const c10::cuda::CUDAGuard guard(c_NF.device());
  const int64_t partial_sums = (c_NF.size(0) + gpu::kBlockdiagRows - 1) / gpu::kBlockdiagRows, G = maps.weight_GOI[0].size(0);
  const auto wide = c_NF.options().dtype(at::kFloat);
  const bool has_bias = maps.bias_F[0].defined();
  const QkvTensors tensors = qkv_tensors(c_NF, x_NF, maps);
  gpu::Blockdiag4 args = qkv_arguments(tensors, grad_NF[0].scalar_type());
  std::array<Tensor, 3> grads;
  for (size_t i = 0; i < 3; ++i) {
    grads[i] = aligned(grad_NF[i].contiguous());
    args.grad_out_NF[i] = pointer(grads[i]);
  }
  const Tensor grad_weight_R3GOI = at::empty({partial_sums, 3, G, 4, 4}, wide);
  const Tensor grad_bias_R3F = has_bias ? at::empty({partial_sums, 3, 4 * G}, wide) : Tensor();
  QkvBackward out{at::empty(c_NF.sizes(), c_NF.options()), at::empty(x_NF.sizes(), x_NF.options()), {}};
  const Tensor residual = grad_residual_NF.defined() ? aligned(grad_residual_NF) : Tensor();
  args.grad_residual_NF = pointer(residual);
  args.grad_c_NF = pointer(out.c_NF);
  args.grad_x_NF = pointer(out.x_NF);
  args.grad_weight_R3GOI = floats(grad_weight_R3GOI);
  args.grad_bias_R3F = floats(grad_bias_R3F);
  check(gpu::blockdiag4_backward(args, c10::cuda::getCurrentCUDAStream()), "qkv_projection backward, c_NF", c_NF);
  const Tensor grad_weight_3GOI = grad_weight_R3GOI.sum(0), grad_bias_3F = has_bias ? grad_bias_R3F.sum(0) : Tensor();
  for (size_t i = 0; i < 3; ++i) {
    out.maps.weight_GOI[i] = grad_weight_3GOI[int64_t(i)];
    if (has_bias) out.maps.bias_F[i] = grad_bias_3F[int64_t(i)];
  }
  return out;
}

}  // namespace

void register_blockdiag(CudaBackend& table) {
  table.qkv_forward = qkv_forward_cuda;
  table.qkv_backward = qkv_backward_cuda;
}

}  // namespace distil_xlstm::ops
