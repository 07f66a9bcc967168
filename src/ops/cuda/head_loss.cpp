// Glue of the head losses.
#include "kernels/cuda/head_loss.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

void head_loss_tile_cuda(const HeadLossTile& tile) {
  const Tensor& student = tile.student_PV;
  const c10::cuda::CUDAGuard guard(student.device());
  const Tensor values_P7 = at::empty({student.size(0), kNumHeadSums}, tile.sums.options());
  if (tile.teacher_PV.defined() && tile.teacher_PV.stride(0) != student.stride(0)) {
    throw ShapeError("head_losses: rows of the teacher's logits {} elements apart, of the student's {}: they must be equal",
                     tile.teacher_PV.stride(0), student.stride(0));
  }
  gpu::HeadLoss x{};
  x.logits_type = x.gradient_type = type_of(student);
  x.P = student.size(0);
  x.V = student.size(1);
  x.stride = x.gradient_stride = student.stride(0);
  x.student_PV = pointer(student);
  x.teacher_PV = pointer(tile.teacher_PV);
  x.gradient_PV = tile.options.with_gradient ? pointer(student) : nullptr;
  x.targets_P = tile.targets_P.const_data_ptr<int64_t>();
  x.valid_P = tile.valid_P.defined() ? reinterpret_cast<const uint8_t*>(tile.valid_P.const_data_ptr<bool>()) : nullptr;
  x.objective = tile.objective;
  x.gradient_scale = tile.gradient_scale;
  x.values_P7 = values_P7.mutable_data_ptr<double>();
  x.sums_7 = tile.sums.mutable_data_ptr<double>();
  check(gpu::head_loss_tile(x, c10::cuda::getCurrentCUDAStream()), "head_losses, student_PV", student);
}

}  // namespace

void register_head_loss(CudaBackend& table) {
  table.head_loss_tile = head_loss_tile_cuda;
}

}  // namespace distil_xlstm::ops
