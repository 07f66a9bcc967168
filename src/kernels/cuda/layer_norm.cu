#include "kernels/cuda/layer_norm.h"

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kHeldValues = 32;  // that a lane keeps in registers between the passes over its row

// Over kLanes neighbouring threads: a warp or a part of one, all of whose threads must come here, or the whole block.
template <int kLanes>
__device__ inline float sum_lanes(float x) {
  static_assert(kLanes <= 32 || kLanes == kThreads);
#pragma unroll
  for (int offset = (kLanes < 32 ? kLanes : 32) / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  if constexpr (kLanes == kThreads) {
    __shared__ float partial[kThreads / 32];
    __syncthreads();  // the sum before this one has been read
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int i = 0; i < kThreads / 32; ++i) x += partial[i];
  }
  return x;
}

// What kLanes threads work on: one group of one row. Where none is left the width is 0, and only the sums go on.
struct Place {
  int64_t group;  // of all N * G
  int lane, width;
};
template <int kLanes>
__device__ inline Place place(const LayerNorm& x) {
  const int64_t group = int64_t(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  return {group, int(threadIdx.x) % kLanes, group < x.N * x.G ? x.K : 0};
}

// T is the type of x, Y that of y.
template <typename T, typename Y, int kLanes>
__global__ void __launch_bounds__(kThreads) forward_vectors(const __grid_constant__ LayerNorm x) {
  constexpr int W = kVectorSize<T>, kHeld = kHeldValues / W;
  const Place at = place<kLanes>(x);
  const T* in = static_cast<const T*>(x.x_NGK) + at.group * x.K;
  Y* out = static_cast<Y*>(x.y_NGK) + at.group * x.K;
  const float* weight = x.weight_GK + at.group % x.G * x.K;
  float values[kHeld][W], sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int k = (at.lane + i * kLanes) * W;
    if (k >= at.width) break;
    load_values(values[i], in + k);
#pragma unroll
    for (int j = 0; j < W; ++j) sum += values[i][j];
  }
  const float mean = sum_lanes<kLanes>(sum) / x.K;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if ((at.lane + i * kLanes) * W >= at.width) break;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      values[i][j] -= mean;
      squares += values[i][j] * values[i][j];
    }
  }
  const float rstd = rsqrtf(sum_lanes<kLanes>(squares) / x.K + x.eps);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int k = (at.lane + i * kLanes) * W;
    if (k >= at.width) break;
    float factor[W];
    load_values(factor, weight + k);
#pragma unroll
    for (int j = 0; j < W; ++j) values[i][j] *= rstd * (1.0f + factor[j]);
    store_values(out + k, values[i]);
  }
  if (at.lane == 0 && at.width > 0) {
    x.mean_NG[at.group] = mean;
    x.rstd_NG[at.group] = rstd;
  }
}

template <typename T, typename Y, int kLanes>
__global__ void __launch_bounds__(kThreads) input_vectors(const __grid_constant__ LayerNorm x) {
  constexpr int W = kVectorSize<T>, kHeld = kHeldValues / W;
  const Place at = place<kLanes>(x);
  const T* in = static_cast<const T*>(x.x_NGK) + at.group * x.K;
  const Y* dy = static_cast<const Y*>(x.grad_y_NGK) + at.group * x.K;
  T* out = static_cast<T*>(x.grad_x_NGK) + at.group * x.K;
  const float* weight = x.weight_GK + at.group % x.G * x.K;
  const float mean = at.width > 0 ? x.mean_NG[at.group] : 0.0f, rstd = at.width > 0 ? x.rstd_NG[at.group] : 0.0f;
  float normalized[kHeld][W], grad[kHeld][W], sum = 0.0f, sum_normalized = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int k = (at.lane + i * kLanes) * W;
    if (k >= at.width) break;
    float factor[W];
    load_values(normalized[i], in + k);
    load_values(grad[i], dy + k);
    load_values(factor, weight + k);
#pragma unroll
    for (int j = 0; j < W; ++j) {
      normalized[i][j] = (normalized[i][j] - mean) * rstd;
      grad[i][j] *= 1.0f + factor[j];
      sum += grad[i][j];
      sum_normalized += grad[i][j] * normalized[i][j];
    }
  }
  const float average = sum_lanes<kLanes>(sum) / x.K, average_normalized = sum_lanes<kLanes>(sum_normalized) / x.K;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int k = (at.lane + i * kLanes) * W;
    if (k >= at.width) break;
#pragma unroll
    for (int j = 0; j < W; ++j) grad[i][j] = rstd * (grad[i][j] - average - normalized[i][j] * average_normalized);
    store_values(out + k, grad[i]);
  }
}

// grid: (vectors of features, blocks of rows). W values lie in one group.
template <typename T, typename Y, int W>
__global__ void __launch_bounds__(kThreads) weight_kernel(const __grid_constant__ LayerNorm x) {
  const int width = x.G * x.K, feature = int(blockIdx.x * kThreads + threadIdx.x) * W;
  if (feature >= width) return;
  const int64_t first = int64_t(blockIdx.y) * kNormBlockRows, last = min(first + kNormBlockRows, x.N);
  float sums[W] = {};
#pragma unroll 4
  for (int64_t row = first; row < last; ++row) {
    const int64_t group = row * x.G + feature / x.K, at = row * width + feature;
    const float mean = __ldg(x.mean_NG + group), rstd = __ldg(x.rstd_NG + group);
    float in[W], dy[W];
    load_values(in, static_cast<const T*>(x.x_NGK) + at);
    load_values(dy, static_cast<const Y*>(x.grad_y_NGK) + at);
#pragma unroll
    for (int j = 0; j < W; ++j) sums[j] += dy[j] * (in[j] - mean) * rstd;
  }
  store_values(x.grad_weight_PGK + int64_t(blockIdx.y) * width + feature, sums);
}

// Rows of any width: a warp per row and group, value by value.
constexpr int kWarps = kThreads / 32;

template <typename T, typename Y>
__global__ void forward_values(const __grid_constant__ LayerNorm x) {
  const int64_t group = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (group >= x.N * x.G) return;
  const int lane = int(threadIdx.x) % 32;
  const T* in = static_cast<const T*>(x.x_NGK) + group * x.K;
  Y* out = static_cast<Y*>(x.y_NGK) + group * x.K;
  const float* weight = x.weight_GK + group % x.G * x.K;
  float sum = 0.0f, squares = 0.0f;
  for (int i = lane; i < x.K; i += 32) sum += to_float(in[i]);
  const float mean = sum_lanes<32>(sum) / x.K;
  for (int i = lane; i < x.K; i += 32) {
    const float centered = to_float(in[i]) - mean;
    squares += centered * centered;
  }
  const float rstd = rsqrtf(sum_lanes<32>(squares) / x.K + x.eps);
  for (int i = lane; i < x.K; i += 32) out[i] = from_float<Y>((to_float(in[i]) - mean) * rstd * (1.0f + weight[i]));
  if (lane == 0) {
    x.mean_NG[group] = mean;
    x.rstd_NG[group] = rstd;
  }
}

template <typename T, typename Y>
__global__ void input_values(const __grid_constant__ LayerNorm x) {
  const int64_t group = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (group >= x.N * x.G) return;
  const int lane = int(threadIdx.x) % 32;
  const T* in = static_cast<const T*>(x.x_NGK) + group * x.K;
  const Y* dy = static_cast<const Y*>(x.grad_y_NGK) + group * x.K;
  T* out = static_cast<T*>(x.grad_x_NGK) + group * x.K;
  const float *weight = x.weight_GK + group % x.G * x.K, mean = x.mean_NG[group], rstd = x.rstd_NG[group];
  float sum = 0.0f, sum_normalized = 0.0f;
  for (int i = lane; i < x.K; i += 32) {
    const float grad = to_float(dy[i]) * (1.0f + weight[i]);
    sum += grad;
    sum_normalized += grad * (to_float(in[i]) - mean) * rstd;
  }
  const float average = sum_lanes<32>(sum) / x.K, average_normalized = sum_lanes<32>(sum_normalized) / x.K;
  for (int i = lane; i < x.K; i += 32) {
    const float normalized = (to_float(in[i]) - mean) * rstd;
    out[i] = from_float<T>(rstd * (to_float(dy[i]) * (1.0f + weight[i]) - average - normalized * average_normalized));
  }
}

unsigned blocks(int64_t count, int64_t size) {
  return unsigned((count + size - 1) / size);
}

template <typename T>
bool has_vectors(const LayerNorm& x) {
  return x.K % kVectorSize<T> == 0 && are_aligned({x.x_NGK, x.weight_GK, x.y_NGK, x.grad_y_NGK, x.grad_x_NGK, x.grad_weight_PGK});
}

// f(std::integral_constant<int, lanes>{}): threads that hold a group's values together. 0: it goes value by value.
template <typename T, typename F>
void with_lanes(const LayerNorm& x, const F& f) {
  if (!has_vectors<T>(x) || x.K > kThreads * kHeldValues) return f(std::integral_constant<int, 0>{});
  if (x.K <= 16 * kHeldValues) return f(std::integral_constant<int, 16>{});
  if (x.K <= 32 * kHeldValues) return f(std::integral_constant<int, 32>{});
  f(std::integral_constant<int, kThreads>{});
}

// f(T{}, Y{}) with the C++ types of x and y.
template <typename F>
cudaError_t with_types(const LayerNorm& x, const F& f) {
  return with_type(x.type, [&](auto zero) {
    if (x.y_type == x.type) return f(zero, zero);
    if constexpr (std::is_same_v<decltype(zero), float>) {
      if (x.y_type == Type::bfloat16) return f(zero, __nv_bfloat16{});
      if (x.y_type == Type::float16) return f(zero, __half{});
    }
    return cudaErrorInvalidValue;
  });
}

}  // namespace

cudaError_t layer_norm_forward(const LayerNorm& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  return with_types(x, [&](auto t, auto y) {
    using T = decltype(t);
    using Y = decltype(y);
    with_lanes<T>(x, [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::value;
      if constexpr (kLanes == 0) {
        forward_values<T, Y><<<blocks(x.N * x.G, kWarps), kThreads, 0, stream>>>(x);
      } else {
        forward_vectors<T, Y, kLanes><<<blocks(x.N * x.G, kThreads / kLanes), kThreads, 0, stream>>>(x);
      }
    });
    return cudaGetLastError();
  });
}

cudaError_t layer_norm_backward(const LayerNorm& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  return with_types(x, [&](auto t, auto y) {
    using T = decltype(t);
    using Y = decltype(y);
    with_lanes<T>(x, [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::value;
      if constexpr (kLanes == 0) {
        input_values<T, Y><<<blocks(x.N * x.G, kWarps), kThreads, 0, stream>>>(x);
      } else {
        input_vectors<T, Y, kLanes><<<blocks(x.N * x.G, kThreads / kLanes), kThreads, 0, stream>>>(x);
      }
    });
    constexpr int W = kVectorSize<T>;
    const int64_t width = int64_t(x.G) * x.K;
    const unsigned row_blocks = blocks(x.N, kNormBlockRows);
    if (has_vectors<T>(x)) {
      weight_kernel<T, Y, W><<<dim3(blocks(width / W, kThreads), row_blocks), kThreads, 0, stream>>>(x);
    } else {
      weight_kernel<T, Y, 1><<<dim3(blocks(width, kThreads), row_blocks), kThreads, 0, stream>>>(x);
    }
    return cudaGetLastError();
  });
}

}  // namespace distil_xlstm::kernels::cuda
