// Glue of rotary positions.
#include "kernels/cuda/rotary.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

void rotate_cuda(const Tensor& x_BSHK, const Tensor& cos_TI, const Tensor& sin_TI, int64_t first_position) {
  const c10::cuda::CUDAGuard guard(x_BSHK.device());
  const gpu::Rotary args{.type = type_of(x_BSHK),
                         .B = x_BSHK.size(0),
                         .S = x_BSHK.size(1),
                         .H = int(x_BSHK.size(2)),
                         .K = int(x_BSHK.size(3)),
                         .batch_stride = x_BSHK.stride(0),
                         .row_stride = x_BSHK.stride(1),
                         .head_stride = x_BSHK.stride(2),
                         .x_BSHK = pointer(x_BSHK),
                         .cos_TI = floats(cos_TI),
                         .sin_TI = floats(sin_TI),
                         .first_position = first_position};
  check(gpu::rotate_heads(args, c10::cuda::getCurrentCUDAStream()), "rotary positions, x_BSHK", x_BSHK);
}

}  // namespace

void register_rotary(CudaBackend& table) {
  table.rotate = rotate_cuda;
}

}  // namespace distil_xlstm::ops
