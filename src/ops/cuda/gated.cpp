// Glue of gates of the feed-forward and of the mLSTM.
#include "kernels/cuda/gated.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

static_assert(int(gpu::Activation::gelu) == int(Activation::gelu) && int(gpu::Activation::relu) == int(Activation::relu) &&
              int(gpu::Activation::relu_squared) == int(Activation::relu_squared) &&
              int(gpu::Activation::sigmoid) == int(Activation::sigmoid) && int(gpu::Activation::swish) == int(Activation::swish) &&
              int(gpu::Activation::selu) == int(Activation::selu));

gpu::GatedActivation activation_arguments(const Tensor& gate_NP, const Tensor& value_NP, Activation act) {
  gpu::GatedActivation args{};
  args.type = type_of(gate_NP);
  args.act = static_cast<gpu::Activation>(act);
  args.N = gate_NP.numel() / gate_NP.size(-1);
  args.P = int(gate_NP.size(-1));
  args.stride = args.grad_stride = args.P;
  args.gate_NP = pointer(gate_NP);
  args.value_NP = pointer(value_NP);
  return args;
}

Tensor gated_activation_cuda(const Tensor& gate_NP, const Tensor& value_NP, Activation act) {
  const c10::cuda::CUDAGuard guard(gate_NP.device());
  const Tensor out_NP = at::empty_like(gate_NP);
  gpu::GatedActivation args = activation_arguments(gate_NP, value_NP, act);
  args.out_NP = pointer(out_NP);
  check(gpu::gated_activation_forward(args, c10::cuda::getCurrentCUDAStream()), "gated_activation forward, gate_NP", gate_NP);
  return out_NP;
}

std::pair<Tensor, Tensor> gated_activation_backward_cuda(const Tensor& grad_NP, const Tensor& gate_NP, const Tensor& value_NP,
                                                         Activation act) {
  const c10::cuda::CUDAGuard guard(gate_NP.device());
  const Tensor grad_gate_NP = at::empty_like(gate_NP), grad_value_NP = at::empty_like(value_NP);
  gpu::GatedActivation args = activation_arguments(gate_NP, value_NP, act);
  args.grad_out_NP = pointer(grad_NP);
  args.grad_gate_NP = pointer(grad_gate_NP);
  args.grad_value_NP = pointer(grad_value_NP);
  check(gpu::gated_activation_backward(args, c10::cuda::getCurrentCUDAStream()), "gated_activation backward, gate_NP", gate_NP);
  return {grad_gate_NP, grad_value_NP};
}

Tensor swiglu_cuda(const Tensor& gate_up) {
  const c10::cuda::CUDAGuard guard(gate_up.device());
  const int64_t P = gate_up.size(-1) / 2;
  std::vector<int64_t> sizes = gate_up.sizes().vec();
  sizes.back() = P;
  const Tensor in = aligned(gate_up), out = at::empty(sizes, in.options());
  gpu::GatedActivation args{};
  args.type = type_of(in);
  args.act = gpu::Activation::swish;
  args.N = out.numel() / P;
  args.P = int(P);
  args.stride = 2 * P;
  args.gate_NP = pointer(in);
  args.value_NP = static_cast<const char*>(pointer(in)) + P * in.element_size();
  args.out_NP = pointer(out);
  check(gpu::gated_activation_forward(args, c10::cuda::getCurrentCUDAStream()), "swiglu, gate_up", gate_up);
  return out;
}

Tensor swiglu_backward_cuda(const Tensor& grad, const Tensor& gate_up) {
  const c10::cuda::CUDAGuard guard(gate_up.device());
  const int64_t P = gate_up.size(-1) / 2;
  const Tensor in = aligned(gate_up), grad_out = aligned(grad), grad_in = at::empty_like(in);
  const auto second_half = [&](const Tensor& x) { return static_cast<char*>(pointer(x)) + P * x.element_size(); };
  gpu::GatedActivation args{};
  args.type = type_of(in);
  args.act = gpu::Activation::swish;
  args.N = grad_out.numel() / P;
  args.P = int(P);
  args.stride = args.grad_stride = 2 * P;
  args.gate_NP = pointer(in);
  args.value_NP = second_half(in);
  args.grad_out_NP = pointer(grad_out);
  args.grad_gate_NP = pointer(grad_in);
  args.grad_value_NP = second_half(grad_in);
  check(gpu::gated_activation_backward(args, c10::cuda::getCurrentCUDAStream()), "swiglu backward, gate_up", gate_up);
  return grad_in;
}

gpu::SkipGate skip_arguments(const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF, const Tensor& z_NF) {
  gpu::SkipGate args{};
  args.type = type_of(z_NF);
  args.h_type = type_of(h_NF);
  args.N = z_NF.size(0);
  args.F = int(z_NF.size(1));
  args.h_NF = pointer(h_NF);
  args.skip_F = floats(skip_F);
  args.c_NF = pointer(c_NF);
  args.z_NF = pointer(z_NF);
  return args;
}

Tensor skip_gate_cuda(const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF, const Tensor& z_NF) {
  const c10::cuda::CUDAGuard guard(z_NF.device());
  const Tensor out_NF = at::empty_like(z_NF);
  gpu::SkipGate args = skip_arguments(h_NF, skip_F, c_NF, z_NF);
  args.out_NF = pointer(out_NF);
  check(gpu::skip_gate_forward(args, c10::cuda::getCurrentCUDAStream()), "skip_gate forward, z_NF", z_NF);
  return out_NF;
}

SkipGateGradients skip_gate_backward_cuda(const Tensor& grad_NF, const Tensor& h_NF, const Tensor& skip_F, const Tensor& c_NF,
                                          const Tensor& z_NF) {
  const c10::cuda::CUDAGuard guard(z_NF.device());
  const int64_t partial_sums = (z_NF.size(0) + gpu::kSkipGateRows - 1) / gpu::kSkipGateRows;
  const Tensor grad_h = at::empty_like(h_NF), grad_c = at::empty_like(c_NF), grad_z = at::empty_like(z_NF),
               grad_skip_RF = at::empty({partial_sums, z_NF.size(1)}, skip_F.options());
  gpu::SkipGate args = skip_arguments(h_NF, skip_F, c_NF, z_NF);
  args.grad_out_NF = pointer(grad_NF);
  args.grad_h_NF = pointer(grad_h);
  args.grad_c_NF = pointer(grad_c);
  args.grad_z_NF = pointer(grad_z);
  args.grad_skip_RF = floats(grad_skip_RF);
  check(gpu::skip_gate_backward(args, c10::cuda::getCurrentCUDAStream()), "skip_gate backward, z_NF", z_NF);
  return {grad_h, grad_skip_RF.sum(0), grad_c, grad_z};
}

}  // namespace

void register_gated(CudaBackend& table) {
  table.swiglu = swiglu_cuda;
  table.swiglu_backward = swiglu_backward_cuda;
  table.gated_activation = gated_activation_cuda;
  table.gated_activation_backward = gated_activation_backward_cuda;
  table.skip_gate = skip_gate_cuda;
  table.skip_gate_backward = skip_gate_backward_cuda;
}

}  // namespace distil_xlstm::ops
