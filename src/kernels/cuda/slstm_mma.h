// The tensor-core forms of the sLSTM scan, behind slstm_scan.h. For bfloat16 and float16 and even K.
#pragma once

#include "kernels/cuda/slstm_scan.h"

namespace distil_xlstm::kernels::cuda {

// K up to kSlstmMmaMaxHeadWidth: a block per head and tile of rows.
cudaError_t slstm_forward_mma(const SlstmForward& x, cudaStream_t stream);
cudaError_t slstm_backward_mma(const SlstmBackward& x, cudaStream_t stream);

// K from there to kSlstmClusterMaxHeadWidth: a cluster per head and tile of rows. Needs a current device with thread-block clusters and
// shared memory enough for this K (the smaller GPUs of 12.0 have 99 KiB a block, which ends at K = 288), and code compiled for one.
bool slstm_fits_cluster(int K);
cudaError_t slstm_forward_cluster(const SlstmForward& x, cudaStream_t stream);
cudaError_t slstm_backward_cluster(const SlstmBackward& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
