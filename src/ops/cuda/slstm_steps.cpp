#include "ops/cuda/slstm_steps.h"

#include <c10/cuda/CUDAStream.h>

namespace distil_xlstm::ops {
namespace {

namespace gpu = kernels::cuda;

// out = a b for each head, with float32 sums and result.
void head_product_out(Tensor& out, const Tensor& a, const Tensor& b) {
  if (a.scalar_type() == at::kFloat) {
    at::bmm_out(out, a, b);
  } else {
    at::bmm_out(out, a, b, at::kFloat);
  }
}

// Rows whose first token starts a document are 0.
Tensor without_started_rows(const Tensor& x_BHK, const Tensor& is_start_BS) {
  if (!is_start_BS.defined()) return x_BHK;
  return x_BHK.masked_fill(is_start_BS.select(1, 0).to(at::kBool).view({-1, 1, 1}), 0.0);
}

}  // namespace

cudaError_t slstm_forward_by_steps(const gpu::SlstmForward& x, const Tensor& r_HKGK, const Tensor& initial_hidden_BHK,
                                   const Tensor& is_start_BS) {
  const int64_t B = x.B, H = x.H, K = x.K;
  const Tensor r_HKJ = r_HKGK.view({H, K, 4 * K});
  // A copy in any case: with one row or one head a transposed tensor would be the initial state itself.
  const Tensor hidden_HBK = at::empty({H, B, K}, r_HKGK.options());
  hidden_HBK.copy_(without_started_rows(initial_hidden_BHK, is_start_BS).transpose(0, 1));
  Tensor product_HBJ = at::empty({H, B, 4 * K}, r_HKGK.options().dtype(at::kFloat));
  for (int t = 0; t < x.S; ++t) {
    head_product_out(product_HBJ, hidden_HBK, r_HKJ);
    const cudaError_t error = gpu::slstm_step_forward(x, t, product_HBJ.const_data_ptr<float>(), hidden_HBK.mutable_data_ptr(),
                                                      c10::cuda::getCurrentCUDAStream());
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t slstm_backward_by_steps(const gpu::SlstmBackward& x, const Tensor& r_HKGK, const Tensor& grad_hidden_BHK,
                                    const Tensor& is_start_BS) {
  const int64_t B = x.B, H = x.H, K = x.K;
  const Tensor r_HJK = r_HKGK.view({H, K, 4 * K}).transpose(1, 2);
  const Tensor dp_HBJ = at::empty({H, B, 4 * K}, r_HKGK.options());
  Tensor product_HBK = at::empty({H, B, K}, r_HKGK.options().dtype(at::kFloat));
  for (int t = x.S - 1; t >= 0; --t) {
    const cudaError_t error =
        gpu::slstm_step_backward(x, t, product_HBK.const_data_ptr<float>(), dp_HBJ.mutable_data_ptr(), c10::cuda::getCurrentCUDAStream());
    if (error != cudaSuccess) return error;
    head_product_out(product_HBK, dp_HBJ, r_HJK);
  }
  grad_hidden_BHK.copy_(without_started_rows(product_HBK.transpose(0, 1), is_start_BS));
  return cudaSuccess;
}

}  // namespace distil_xlstm::ops
