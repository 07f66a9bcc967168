#include "kernels/cuda/gate_parts.h"

#include "kernels/cuda/convert.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A thread a value of both gates.
__global__ void __launch_bounds__(kThreads) split_kernel(const __grid_constant__ GateSplit x) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= x.N * x.R) return;
  const int64_t row = i / x.R, column = i % x.R;
  __nv_bfloat16* parts = static_cast<__nv_bfloat16*>(x.parts_NPGR) + row * 4 * x.R + column;
#pragma unroll
  for (int gate = 0; gate < 2; ++gate) {
    const float value = (gate == 0 ? x.input_NR : x.forget_NR)[i];
    const __nv_bfloat16 high = __float2bfloat16(value);
    parts[gate * x.R] = high;
    parts[(2 + gate) * x.R] = __float2bfloat16(value - __bfloat162float(high));
  }
}

__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ GateSums x) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= x.N * x.H) return;
  const int64_t row = i / x.H;
  const int head = int(i % x.H);
  const float* sums = x.sums_NPGH + row * 4 * x.H + head;
  x.input_NH[i] = sums[0] + sums[2 * x.H] + x.input_bias_H[head];
  x.forget_NH[i] = sums[x.H] + sums[3 * x.H] + x.forget_bias_H[head];
}

unsigned blocks(int64_t count) {
  return unsigned((count + kThreads - 1) / kThreads);
}

}  // namespace

cudaError_t split_gates(const GateSplit& x, cudaStream_t stream) {
  if (x.N * x.R == 0) return cudaSuccess;
  split_kernel<<<blocks(x.N * x.R), kThreads, 0, stream>>>(x);
  return cudaGetLastError();
}

cudaError_t sum_gate_parts(const GateSums& x, cudaStream_t stream) {
  if (x.N * x.H == 0) return cudaSuccess;
  sum_kernel<<<blocks(x.N * x.H), kThreads, 0, stream>>>(x);
  return cudaGetLastError();
}

}  // namespace distil_xlstm::kernels::cuda
