// Glue of rotary positions.
#include "kernels/cuda/rotary.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

void rotate_cuda(const Tensor& x_BSHK, const Tensor& cos_TI, const Tensor& sin_TI, int64_t first_position) {
  const c10::cuda::CUDAGuard guard(x_BSHK.device());
  const gpu::Rotary args{type_of(x_BSHK),  x_BSHK.size(0),   x_BSHK.size(1),  int(x_BSHK.size(2)), int(x_BSHK.size(3)), x_BSHK.stride(0),
                         x_BSHK.stride(1), x_BSHK.stride(2), pointer(x_BSHK), floats(cos_TI),      floats(sin_TI),      first_position};
  check(gpu::rotate_heads(args, c10::cuda::getCurrentCUDAStream()), "rotary positions, x_BSHK", x_BSHK);
}

}  // namespace

void register_rotary(CudaBackend& table) {
  table.rotate = rotate_cuda;
}

}  // namespace distil_xlstm::ops
