// Glue of SwiGLU in its product.
#include "kernels/cuda/swiglu_product.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

Tensor swiglu_product_cuda(const Tensor& x, const Tensor& weight_2IK) {
  if (x.scalar_type() != at::kBFloat16 && x.scalar_type() != at::kHalf) return {};
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t K = x.size(-1), I = weight_2IK.size(0) / 2;
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = I;
  const Tensor out = at::empty(sizes, x.options());
  const gpu::SwigluProduct args{type_of(x), x.numel() / K, int(I), int(K), pointer(x), pointer(weight_2IK), pointer(out)};
  const cudaError_t error = gpu::swiglu_product(args, c10::cuda::getCurrentCUDAStream());
  if (error == cudaErrorNotSupported) return {};
  check(error, "swiglu_product, x", x);
  return out;
}

}  // namespace

void register_swiglu_product(CudaBackend& table) {
  table.swiglu_product = swiglu_product_cuda;
}

}  // namespace distil_xlstm::ops
