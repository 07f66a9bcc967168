// The tensor-core form of the sLSTM scan, behind slstm_scan.h. For bfloat16 and float16, even K up to kSlstmMmaMaxHeadWidth.
#pragma once

#include "kernels/cuda/slstm_scan.h"

namespace distil_xlstm::kernels::cuda {

cudaError_t slstm_forward_mma(const SlstmForward& x, cudaStream_t stream);
cudaError_t slstm_backward_mma(const SlstmBackward& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
