// The sLSTM scan of wide heads, a product and a kernel a token (kernels/cuda/slstm_scan.h).
#pragma once

#include "kernels/cuda/slstm_scan.h"
#include "ops/tensor.h"

namespace distil_xlstm::ops {

// What the arguments ask of kernels::cuda::slstm_forward; r_HKGK is their R, is_start_BS may be undefined.
cudaError_t slstm_forward_by_steps(const kernels::cuda::SlstmForward& x, const Tensor& r_HKGK, const Tensor& initial_hidden_BHK,
                                   const Tensor& is_start_BS);
// And of slstm_backward; grad_hidden_BHK is theirs.
cudaError_t slstm_backward_by_steps(const kernels::cuda::SlstmBackward& x, const Tensor& r_HKGK, const Tensor& grad_hidden_BHK,
                                    const Tensor& is_start_BS);

}  // namespace distil_xlstm::ops
