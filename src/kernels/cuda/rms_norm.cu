#include "kernels/cuda/rms_norm.h"

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxHeld = kRmsNormMaxVectors / kMaxThreads;

// One block a row, kHeld vectors of W values a thread, held in registers between the two uses.
template <typename T, int W, int kHeld>
__global__ void __launch_bounds__(kMaxThreads) forward_kernel(const __grid_constant__ RmsNorm x) {
  const int64_t row = int64_t(blockIdx.x) * x.D;
  const T *in = static_cast<const T*>(x.x_ND) + row, *weight = static_cast<const T*>(x.weight_D);
  float values[kHeld][W], squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = (int(threadIdx.x) + i * int(blockDim.x)) * W;
    if (at >= x.D) break;
    load_values(values[i], in + at);
    if (x.copy_ND) store_values(static_cast<T*>(x.copy_ND) + row + at, values[i]);
#pragma unroll
    for (int j = 0; j < W; ++j) squares += values[i][j] * values[i][j];
  }
  __shared__ float partial[kMaxThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) squares += __shfl_xor_sync(0xffffffffu, squares, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = squares;
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < int(blockDim.x) / 32; ++i) total += partial[i];
  const float scale = rsqrtf(total / float(x.D) + x.eps);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = (int(threadIdx.x) + i * int(blockDim.x)) * W;
    if (at >= x.D) break;
    float factor[W];
    load_values(factor, weight + at);
#pragma unroll
    for (int j = 0; j < W; ++j) values[i][j] *= scale * factor[j];
    store_values(static_cast<T*>(x.y_ND) + row + at, values[i]);
  }
}

template <typename T, int W>
cudaError_t launch(const RmsNorm& x, cudaStream_t stream) {
  const int vectors = x.D / W;
  if (vectors > kRmsNormMaxVectors || x.N > 0x7fffffff) return cudaErrorInvalidValue;
  const int rounded = (vectors + 31) / 32 * 32;
  if (rounded <= kMaxThreads) {
    forward_kernel<T, W, 1><<<unsigned(x.N), rounded, 0, stream>>>(x);
  } else {
    forward_kernel<T, W, kMaxHeld><<<unsigned(x.N), kMaxThreads, 0, stream>>>(x);
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t rms_norm_forward(const RmsNorm& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  if (x.N < 0 || x.D < 1) return cudaErrorInvalidValue;
  const bool is_aligned = are_aligned({x.x_ND, x.weight_D, x.y_ND, x.copy_ND});
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    return is_aligned && x.D % kVectorSize<T> == 0 ? launch<T, kVectorSize<T>>(x, stream) : launch<T, 1>(x, stream);
  });
}

}  // namespace distil_xlstm::kernels::cuda
