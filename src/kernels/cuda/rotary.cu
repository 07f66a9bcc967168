#include "kernels/cuda/rotary.h"

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// W is 1 or all of 16 bytes. Ordinary loads, not the read-only ones of vector.cuh: the thread overwrites these values.
template <typename T, int W>
__device__ inline void load_own(float (&x)[W], const T* from) {
  if constexpr (W == 1) {
    x[0] = to_float(*from);
  } else {
    static_assert(W == kVectorSize<T>);
    unpack<T>(*reinterpret_cast<const uint4*>(from), x);
  }
}

// A thread turns W channels of one head together with their partners half a head further.
template <typename T, int W>
__global__ void __launch_bounds__(kThreads) rotate_kernel(const __grid_constant__ Rotary x) {
  const unsigned half = unsigned(x.K) / 2, per_head = half / W, per_row = unsigned(x.H) * per_head;
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x, row = at / per_row;
  if (row >= x.B * x.S) return;
  const unsigned in_row = unsigned(at - row * per_row), head = in_row / per_head, channel = (in_row - head * per_head) * W;
  const int64_t batch = row / x.S, s = row - batch * x.S;
  T* first = static_cast<T*>(x.x_BSHK) + batch * x.batch_stride + s * x.row_stride + head * x.head_stride + channel;
  T* second = first + half;
  const int64_t angle = (x.first_position + s) * half + channel;
  float real[W], imaginary[W], cos[W], sin[W];
  load_own(real, first);
  load_own(imaginary, second);
  load_values(cos, x.cos_TI + angle);
  load_values(sin, x.sin_TI + angle);
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const float turned = real[i] * cos[i] - imaginary[i] * sin[i];
    imaginary[i] = imaginary[i] * cos[i] + real[i] * sin[i];
    real[i] = turned;
  }
  store_values(first, real);
  store_values(second, imaginary);
}

template <typename T, int W>
cudaError_t launch(const Rotary& x, cudaStream_t stream) {
  const int64_t blocks = (x.B * x.S * x.H * (x.K / 2 / W) + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
  rotate_kernel<T, W><<<unsigned(blocks), kThreads, 0, stream>>>(x);
  return cudaGetLastError();
}

}  // namespace

cudaError_t rotate_heads(const Rotary& x, cudaStream_t stream) {
  if (x.B < 0 || x.S < 0 || x.H < 0 || x.K < 2 || x.K % 2 != 0 || x.first_position < 0) return cudaErrorInvalidValue;
  if (x.B == 0 || x.S == 0 || x.H == 0) return cudaSuccess;
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    constexpr int W = kVectorSize<T>;
    const bool has_vectors = are_aligned({x.x_BSHK, x.cos_TI, x.sin_TI}) && x.K % (2 * W) == 0 && x.batch_stride % W == 0 &&
                             x.row_stride % W == 0 && x.head_stride % W == 0;
    return has_vectors ? launch<T, W>(x, stream) : launch<T, 1>(x, stream);
  });
}

}  // namespace distil_xlstm::kernels::cuda
