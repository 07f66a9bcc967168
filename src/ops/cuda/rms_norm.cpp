// Glue of RMSNorm.
#include "kernels/cuda/rms_norm.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

std::pair<Tensor, Tensor> rms_norm_cuda(const Tensor& x, const Tensor& weight, double eps, bool copies) {
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor in = aligned(x), factor = aligned(weight), y = at::empty_like(in), copy = copies ? at::empty_like(in) : Tensor();
  const int64_t D = in.size(-1);
  const gpu::RmsNorm args{type_of(in), in.numel() / D, int(D), float(eps), pointer(in), pointer(factor), pointer(y), pointer(copy)};
  check(gpu::rms_norm_forward(args, c10::cuda::getCurrentCUDAStream()), "rms_norm, x", x);
  return {y, copy};
}

}  // namespace

void register_rms_norm(CudaBackend& table) {
  table.rms_norm = rms_norm_cuda;
  table.max_rms_norm_vectors = gpu::kRmsNormMaxVectors;
}

}  // namespace distil_xlstm::ops
