#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/layer_norm.h"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kWarps = 4;

__device__ inline float sum_warp(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// One warp per row and group.
template <typename T>
__global__ void forward_kernel(LayerNorm x) {
  const int64_t group = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (group >= x.N * x.G) return;
  const T* in = static_cast<const T*>(x.x_NGK) + group * x.K;
  T* out = static_cast<T*>(x.y_NGK) + group * x.K;
  const float* weight = x.weight_GK + group % x.G * x.K;
  float sum = 0.0f, squares = 0.0f;
  for (int i = threadIdx.x; i < x.K; i += 32) sum += to_float(in[i]);
  const float mean = sum_warp(sum) / x.K;
  for (int i = threadIdx.x; i < x.K; i += 32) {
    const float centered = to_float(in[i]) - mean;
    squares += centered * centered;
  }
  const float rstd = rsqrtf(sum_warp(squares) / x.K + x.eps);
  for (int i = threadIdx.x; i < x.K; i += 32) out[i] = from_float<T>((to_float(in[i]) - mean) * rstd * (1.0f + weight[i]));
  if (threadIdx.x == 0) {
    x.mean_NG[group] = mean;
    x.rstd_NG[group] = rstd;
  }
}

template <typename T>
__global__ void input_kernel(LayerNorm x) {
  const int64_t group = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (group >= x.N * x.G) return;
  const T *in = static_cast<const T*>(x.x_NGK) + group * x.K, *dy = static_cast<const T*>(x.grad_y_NGK) + group * x.K;
  T* out = static_cast<T*>(x.grad_x_NGK) + group * x.K;
  const float *weight = x.weight_GK + group % x.G * x.K, mean = x.mean_NG[group], rstd = x.rstd_NG[group];
  float sum = 0.0f, sum_normalized = 0.0f;
  for (int i = threadIdx.x; i < x.K; i += 32) {
    const float grad = to_float(dy[i]) * (1.0f + weight[i]);
    sum += grad;
    sum_normalized += grad * (to_float(in[i]) - mean) * rstd;
  }
  const float average = sum_warp(sum) / x.K, average_normalized = sum_warp(sum_normalized) / x.K;
  for (int i = threadIdx.x; i < x.K; i += 32) {
    const float normalized = (to_float(in[i]) - mean) * rstd;
    out[i] = from_float<T>(rstd * (to_float(dy[i]) * (1.0f + weight[i]) - average - normalized * average_normalized));
  }
}

// grid: (features, blocks of rows).
template <typename T>
__global__ void weight_kernel(LayerNorm x) {
  const int width = x.G * x.K, feature = blockIdx.x * blockDim.x + threadIdx.x;
  if (feature >= width) return;
  const int64_t first = int64_t(blockIdx.y) * kNormBlockRows, last = min(first + kNormBlockRows, x.N);
  float sum = 0.0f;
  for (int64_t row = first; row < last; ++row) {
    const int64_t group = row * x.G + feature / x.K, at = row * width + feature;
    sum += to_float(static_cast<const T*>(x.grad_y_NGK)[at]) * (to_float(static_cast<const T*>(x.x_NGK)[at]) - x.mean_NG[group]) *
           x.rstd_NG[group];
  }
  x.grad_weight_PGK[int64_t(blockIdx.y) * width + feature] = sum;
}

unsigned blocks(int64_t count, int64_t size) {
  return unsigned((count + size - 1) / size);
}

}  // namespace

cudaError_t layer_norm_forward(const LayerNorm& x, cudaStream_t stream) {
  return with_type(x.type, [&](auto zero) {
    forward_kernel<decltype(zero)><<<blocks(x.N * x.G, kWarps), dim3(32, kWarps), 0, stream>>>(x);
    return cudaGetLastError();
  });
}

cudaError_t layer_norm_backward(const LayerNorm& x, cudaStream_t stream) {
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    input_kernel<T><<<blocks(x.N * x.G, kWarps), dim3(32, kWarps), 0, stream>>>(x);
    weight_kernel<T><<<dim3(blocks(int64_t(x.G) * x.K, 128), blocks(x.N, kNormBlockRows)), 128, 0, stream>>>(x);
    return cudaGetLastError();
  });
}

}  // namespace distil_xlstm::kernels::cuda
