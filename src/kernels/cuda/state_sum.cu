#include "kernels/cuda/state_sum.h"

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, int W>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ StateSum x) {
  const int64_t at = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * W;
  if (at >= x.count) return;
  float sum[W] = {}, states[kStateSumMax][W];
  if (x.accumulates) {
    if constexpr (W == 1) {
      sum[0] = x.sum[at];
    } else {
#pragma unroll
      for (int i = 0; i < W; i += 4) {
        const float4 values = *reinterpret_cast<const float4*>(x.sum + at + i);
        sum[i] = values.x, sum[i + 1] = values.y, sum[i + 2] = values.z, sum[i + 3] = values.w;
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kStateSumMax; ++n) {
    if (n < x.num_states) load_values(states[n], static_cast<const T*>(x.states[n]) + at);
  }
#pragma unroll
  for (int n = 0; n < kStateSumMax; ++n) {
    if (n >= x.num_states) break;
#pragma unroll
    for (int i = 0; i < W; ++i) sum[i] += states[n][i];
  }
  store_values(x.sum + at, sum);
}

}  // namespace

cudaError_t state_sum(const StateSum& x, cudaStream_t stream) {
  if (x.count == 0) return cudaSuccess;
  if (x.num_states < 1 || x.num_states > kStateSumMax) return cudaErrorInvalidValue;
  bool is_aligned = are_aligned({x.sum});
  for (int n = 0; n < x.num_states; ++n) is_aligned = is_aligned && are_aligned({x.states[n]});
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int W = kVectorSize<T>;
    const auto blocks = [&](int width) { return unsigned((x.count / width + kThreads - 1) / kThreads); };
    if (is_aligned && x.count % W == 0) {
      sum_kernel<T, W><<<blocks(W), kThreads, 0, stream>>>(x);
    } else {
      sum_kernel<T, 1><<<blocks(1), kThreads, 0, stream>>>(x);
    }
    return cudaGetLastError();
  });
}

}  // namespace distil_xlstm::kernels::cuda
