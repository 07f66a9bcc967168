// Glue of the mLSTM's gates.
#include "kernels/cuda/gate_parts.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

void split_gates_cuda(const Tensor& input_NR, const Tensor& forget_NR, const Tensor& parts_NPGR) {
  const c10::cuda::CUDAGuard guard(input_NR.device());
  const Tensor input = input_NR.contiguous(), forget = forget_NR.contiguous();
  const gpu::GateSplit args{input.size(0), input.size(1), floats(input), floats(forget), pointer(parts_NPGR)};
  check(gpu::split_gates(args, c10::cuda::getCurrentCUDAStream()), "mlstm_gate_projection, input_NR", input_NR);
}

std::pair<Tensor, Tensor> sum_gate_parts_cuda(const Tensor& sums_NPGH, const Tensor& input_bias_H, const Tensor& forget_bias_H) {
  const c10::cuda::CUDAGuard guard(sums_NPGH.device());
  const int64_t N = sums_NPGH.size(0), H = input_bias_H.size(0);
  const Tensor input_bias = input_bias_H.contiguous(), forget_bias = forget_bias_H.contiguous();
  std::pair out{at::empty({N, H}, sums_NPGH.options()), at::empty({N, H}, sums_NPGH.options())};
  const gpu::GateSums args{N, int(H), floats(sums_NPGH), floats(input_bias), floats(forget_bias), floats(out.first), floats(out.second)};
  check(gpu::sum_gate_parts(args, c10::cuda::getCurrentCUDAStream()), "mlstm_gate_projection, sums_NPGH", sums_NPGH);
  return out;
}

}  // namespace

void register_gate_parts(CudaBackend& table) {
  table.split_gates = split_gates_cuda;
  table.sum_gate_parts = sum_gate_parts_cuda;
}

}  // namespace distil_xlstm::ops
