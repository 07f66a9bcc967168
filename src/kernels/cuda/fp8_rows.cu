#include "kernels/cuda/fp8_rows.h"

#include <cuda_fp8.h>

#include <cfloat>

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kMaxThreads = 1024, kAimedThreads = 320;  // few enough that several rows share a multiprocessor
constexpr float kMaxE4m3 = 448.0f;

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Over the block, the same in each thread. `partial` may be used again after the next barrier.
template <typename Combine>
__device__ inline float reduce(float x, float* partial, const Combine& combine) {
  for (int offset = 16; offset > 0; offset /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, offset));
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float total = partial[0];
  for (int i = 1; i < int(blockDim.x) / 32; ++i) total = combine(total, partial[i]);
  return total;
}

__device__ inline unsigned pack_e4m3(float a, float b, float c, float d) {
  const unsigned low = __nv_cvt_float2_to_fp8x2(float2{a, b}, __NV_SATFINITE, __NV_E4M3);
  const unsigned high = __nv_cvt_float2_to_fp8x2(float2{c, d}, __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

// One block of at most kThreads a row, kHeld vectors of 16 bytes of x a thread, held in registers until the row's scale is known.
template <typename T, int kThreads, int kHeld, Fp8Source kSource>
__global__ void __launch_bounds__(kThreads) rows_kernel(const __grid_constant__ Fp8Rows x) {
  constexpr int W = kVectorSize<T>;
  __shared__ float partial_sums[kMaxThreads / 32], partial_maxima[kMaxThreads / 32];
  const int64_t row = blockIdx.x;
  const T* in = static_cast<const T*>(x.x) + row * x.K * (kSource == Fp8Source::swiglu ? 2 : 1);
  float values[kHeld][W], squares = 0.0f;
  Packed<T, W> packed[kHeld], up[kHeld];  // all under way before the first is used
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = (int(threadIdx.x) + i * int(blockDim.x)) * W;
    if (at >= x.K) break;
    packed[i].load(in + at);
    if constexpr (kSource == Fp8Source::swiglu) up[i].load(in + x.K + at);
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if ((int(threadIdx.x) + i * int(blockDim.x)) * W >= x.K) break;
    packed[i].unpack_into(values[i]);
    if constexpr (kSource == Fp8Source::swiglu) {
      float factor[W];
      up[i].unpack_into(factor);
#pragma unroll
      for (int j = 0; j < W; ++j) values[i][j] *= sigmoid_for<T>(values[i][j]) * factor[j];
    }
    if constexpr (kSource == Fp8Source::rms_norm) {
#pragma unroll
      for (int j = 0; j < W; ++j) squares += values[i][j] * values[i][j];
    }
  }
  if constexpr (kSource == Fp8Source::rms_norm) {
    const float factor = rsqrtf(reduce(squares, partial_sums, Sum{}) / float(x.K) + x.eps);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int at = (int(threadIdx.x) + i * int(blockDim.x)) * W;
      if (at >= x.K) break;
      float weight[W];
      load_values(weight, static_cast<const T*>(x.weight_K) + at);
#pragma unroll
      for (int j = 0; j < W; ++j) values[i][j] *= factor * weight[j];
    }
  }
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if ((int(threadIdx.x) + i * int(blockDim.x)) * W >= x.K) break;
#pragma unroll
    for (int j = 0; j < W; ++j) largest = fmaxf(largest, fabsf(values[i][j]));
  }
  largest = reduce(largest, partial_maxima, Max{});
  const float scale = fmaxf(largest / kMaxE4m3, FLT_MIN), inverse = 1.0f / scale;
  if (threadIdx.x == 0) x.scale_N[row] = scale;
  uint8_t* out = static_cast<uint8_t*>(x.values_NK) + row * x.K;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int at = (int(threadIdx.x) + i * int(blockDim.x)) * W;
    if (at >= x.K) break;
    float (&v)[W] = values[i];
#pragma unroll
    for (int j = 0; j < W; ++j) v[j] *= inverse;
    if constexpr (W == 8) {
      *reinterpret_cast<uint2*>(out + at) = uint2{pack_e4m3(v[0], v[1], v[2], v[3]), pack_e4m3(v[4], v[5], v[6], v[7])};
    } else {
      *reinterpret_cast<unsigned*>(out + at) = pack_e4m3(v[0], v[1], v[2], v[3]);
    }
  }
}

template <typename T, int kThreads, int kHeld>
cudaError_t launch(const Fp8Rows& x, int threads, cudaStream_t stream) {
  switch (x.source) {
    case Fp8Source::values:
      rows_kernel<T, kThreads, kHeld, Fp8Source::values><<<unsigned(x.N), threads, 0, stream>>>(x);
      break;
    case Fp8Source::swiglu:
      rows_kernel<T, kThreads, kHeld, Fp8Source::swiglu><<<unsigned(x.N), threads, 0, stream>>>(x);
      break;
    case Fp8Source::rms_norm:
      rows_kernel<T, kThreads, kHeld, Fp8Source::rms_norm><<<unsigned(x.N), threads, 0, stream>>>(x);
      break;
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t fp8_rows(const Fp8Rows& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  if (x.N < 0 || x.N > 0x7fffffff || x.K < 1 || !are_aligned({x.x, x.weight_K, x.values_NK})) return cudaErrorInvalidValue;
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    const int vectors = x.K / kVectorSize<T>;
    if (x.K % kVectorSize<T> != 0 || vectors > kFp8MaxVectors) return cudaErrorInvalidValue;
    const auto threads = [&](int held) { return ((vectors + held - 1) / held + 31) / 32 * 32; };
    if (threads(1) <= kAimedThreads) return launch<T, kAimedThreads, 1>(x, threads(1), stream);
    if (threads(2) <= kAimedThreads) return launch<T, kAimedThreads, 2>(x, threads(2), stream);
    if (threads(4) <= kAimedThreads) return launch<T, kAimedThreads, 4>(x, threads(4), stream);
    if (threads(8) <= kMaxThreads / 2) return launch<T, kMaxThreads / 2, 8>(x, threads(8), stream);
    return launch<T, kMaxThreads, 8>(x, threads(8), stream);
  });
}

}  // namespace distil_xlstm::kernels::cuda
