// SwiGLU over a matrix product on Hopper: out = silu(x Wg^T) * (x Wu^T), gate and up never in memory (docs/kernels/swiglu_product.md).
// Letters: M rows, I outputs, K inputs. Sums and activation in float; the order of the sums never changes. Bytes: x and out once, the
// weight once for 4 096 rows.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

struct SwigluProduct {
  Type type;  // of all tensors: bfloat16 or float16
  int64_t M;
  int I, K;                       // multiples of 8
  const void *x_MK, *weight_2IK;  // 16-byte aligned, as out; rows 0..I-1 of the weight are the gate's, the others up's
  void* out_MI;
};

// On the current device, with these shapes and pointers. It asks the device once only.
bool swiglu_product_supports(const SwigluProduct& x);
// cudaErrorNotSupported, and nothing launched, where swiglu_product_supports says no, or the driver refuses the tensors' maps or has no
// room for a cluster.
cudaError_t swiglu_product(const SwigluProduct& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
