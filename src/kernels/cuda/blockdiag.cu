#include "kernels/cuda/blockdiag.h"

#include <algorithm>

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kForwardBlocks = 5;  // on a multiprocessor

__device__ inline void load_weights(float (&w)[3][4][4], const Blockdiag4& x, int block) {
#pragma unroll
  for (int part = 0; part < 3; ++part) {
#pragma unroll
    for (int o = 0; o < 4; ++o) load_values(w[part][o], x.weight_GOI[part] + int64_t(block) * 16 + o * 4);
  }
}

// A thread keeps a block of 4 features, its weights in registers, and walks over rows.
template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, kForwardBlocks) forward_kernel(const __grid_constant__ Blockdiag4 x, int rows) {
  const int block = int(blockIdx.x * kThreads + threadIdx.x), F = 4 * x.G;
  if (block >= x.G) return;
  float w[3][4][4], bias[3][4] = {};
  load_weights(w, x, block);
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    if (x.bias_F[part]) {
#pragma unroll
      for (int o = 0; o < 4; ++o) bias[part][o] = x.bias_F[part][4 * block + o];
    }
  }
  const int64_t first = int64_t(blockIdx.y) * rows, last = min(first + rows, x.N);
#pragma unroll 2
  for (int64_t row = first; row < last; ++row) {
    const int64_t at = row * F + 4 * block;
    float c[4], in[4];
    load_values(c, static_cast<const T*>(x.c_NF) + at);
    load_values(in, static_cast<const T*>(x.x_NF) + at);
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      float out[4];
#pragma unroll
      for (int o = 0; o < 4; ++o) {
        out[o] = bias[part][o];
#pragma unroll
        for (int i = 0; i < 4; ++i) out[o] += w[part][o][i] * (part == 2 ? in[i] : c[i]);
      }
      store_values(static_cast<O*>(x.out_NF[part]) + at, out);
    }
  }
}

template <typename T, typename O>
__global__ void __launch_bounds__(kThreads, 3) backward_kernel(const __grid_constant__ Blockdiag4 x) {
  const int block = int(blockIdx.x * kThreads + threadIdx.x), F = 4 * x.G;
  if (block >= x.G) return;
  float w[3][4][4], grad_w[3][4][4] = {}, grad_bias[3][4] = {};
  load_weights(w, x, block);
  const int64_t first = int64_t(blockIdx.y) * kBlockdiagRows, last = min(first + kBlockdiagRows, x.N);
#pragma unroll 2
  for (int64_t row = first; row < last; ++row) {
    const int64_t at = row * F + 4 * block;
    float c[4], in[4], grad[3][4], grad_c[4] = {}, grad_x[4] = {};
    load_values(c, static_cast<const T*>(x.c_NF) + at);
    load_values(in, static_cast<const T*>(x.x_NF) + at);
    if (x.grad_residual_NF) load_values(grad_c, static_cast<const T*>(x.grad_residual_NF) + at);
#pragma unroll
    for (int part = 0; part < 3; ++part) load_values(grad[part], static_cast<const O*>(x.grad_out_NF[part]) + at);
#pragma unroll
    for (int part = 0; part < 3; ++part) {
#pragma unroll
      for (int o = 0; o < 4; ++o) {
        grad_bias[part][o] += grad[part][o];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          (part == 2 ? grad_x[i] : grad_c[i]) += w[part][o][i] * grad[part][o];
          grad_w[part][o][i] += grad[part][o] * (part == 2 ? in[i] : c[i]);
        }
      }
    }
    store_values(static_cast<T*>(x.grad_c_NF) + at, grad_c);
    store_values(static_cast<T*>(x.grad_x_NF) + at, grad_x);
  }
#pragma unroll
  for (int part = 0; part < 3; ++part) {
    const int64_t at = (int64_t(blockIdx.y) * 3 + part) * x.G + block;
#pragma unroll
    for (int o = 0; o < 4; ++o) store_values(x.grad_weight_R3GOI + at * 16 + o * 4, grad_w[part][o]);
    if (x.grad_bias_R3F) store_values(x.grad_bias_R3F + at * 4, grad_bias[part]);
  }
}

template <typename F>
cudaError_t with_types(const Blockdiag4& x, const F& f) {
  if (x.N < 0 || x.G < 1) return cudaErrorInvalidValue;
  return with_type(x.type, [&](auto zero) {
    if (x.out_type == x.type) return f(zero, zero);
    if constexpr (std::is_same_v<decltype(zero), __half>) {
      if (x.out_type == Type::bfloat16) return f(zero, __nv_bfloat16{});
    }
    return cudaErrorInvalidValue;
  });
}

dim3 grid_of(const Blockdiag4& x, int rows) {
  return dim3(unsigned((x.G + kThreads - 1) / kThreads), unsigned((x.N + rows - 1) / rows));
}

}  // namespace

cudaError_t blockdiag4_forward(const Blockdiag4& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  // As many rows a block as let all blocks run at once.
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int row_blocks = std::max(1, kForwardBlocks * multiprocessors / int(grid_of(x, 1).x));
  const int rows = std::max(8, int((x.N + row_blocks - 1) / row_blocks));
  return with_types(x, [&](auto t, auto o) {
    forward_kernel<decltype(t), decltype(o)><<<grid_of(x, rows), kThreads, 0, stream>>>(x, rows);
    return cudaGetLastError();
  });
}

cudaError_t blockdiag4_backward(const Blockdiag4& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  return with_types(x, [&](auto t, auto o) {
    backward_kernel<decltype(t), decltype(o)><<<grid_of(x, kBlockdiagRows), kThreads, 0, stream>>>(x);
    return cudaGetLastError();
  });
}

}  // namespace distil_xlstm::kernels::cuda
