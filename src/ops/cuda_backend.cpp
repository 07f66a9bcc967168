#include "ops/cuda_backend.h"

#include "ops/internal.h"

namespace distil_xlstm::ops {

CudaBackend& cuda_backend() {
  static CudaBackend table;
  return table;
}

bool has_cuda_kernels(const Tensor& x) {
  const at::ScalarType type = x.scalar_type();
  return x.is_cuda() && (cuda_backend().devices >> x.get_device() & 1) != 0 &&
         (type == at::kFloat || type == at::kBFloat16 || type == at::kHalf);
}

at::ScalarType activation_type(const Tensor& x) {
  return has_cuda_kernels(x) ? x.scalar_type() : compute_type(x);
}

}  // namespace distil_xlstm::ops
