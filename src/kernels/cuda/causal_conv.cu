#include "kernels/cuda/causal_conv.h"
#include "kernels/cuda/convert.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 128;

__device__ inline bool starts(const CausalConv& x, int b, int p) {
  return p >= 0 && x.is_start_BS && x.is_start_BS[int64_t(b) * x.S + p];
}

// Input at token p >= -J: rows below 0 come from the initial state.
template <typename T>
__device__ inline float input(const CausalConv& x, int b, int p, int f) {
  const int J = x.K - 1;
  const int64_t at = p >= 0 ? (int64_t(b) * x.S + p) * x.F + f : (int64_t(b) * J + J + p) * x.F + f;
  return to_float(static_cast<const T*>(p >= 0 ? x.x_BSF : x.initial_BJF)[at]);
}

template <typename T>
__device__ inline float pre_activation(const CausalConv& x, int b, int t, int f) {
  float sum = x.bias_F[f];
  for (int age = 0; age < x.K; ++age) {
    sum += x.weight_FK[int64_t(f) * x.K + x.K - 1 - age] * input<T>(x, b, t - age, f);
    if (starts(x, b, t - age)) break;
  }
  return sum;
}

// grid: (features, tokens, batch); tokens S .. S + J - 1 stand for the rows of the state.
template <typename T>
__global__ void forward_kernel(CausalConv x) {
  const int f = blockIdx.x * kThreads + threadIdx.x, b = blockIdx.z, J = x.K - 1;
  if (f >= x.F) return;
  for (int t = blockIdx.y; t < x.S + J; t += gridDim.y) {
    if (t < x.S) {
      const float pre = pre_activation<T>(x, b, t, f);
      static_cast<T*>(x.y_BSF)[(int64_t(b) * x.S + t) * x.F + f] = from_float<T>(pre * sigmoid(pre));
    } else {
      const int p = t - J;
      bool cut = false;
      for (int later = p + 1; later < x.S; ++later) cut = cut || starts(x, b, later);
      static_cast<T*>(x.state_BJF)[(int64_t(b) * J + t - x.S) * x.F + f] = from_float<T>(cut ? 0.0f : input<T>(x, b, p, f));
    }
  }
}

// grid: (features, chunks of tokens, batch): gradients before SiLU, and one partial sum of the weight's and the bias's gradients.
template <typename T>
__global__ void weight_kernel(CausalConvBackward g) {
  const CausalConv& x = g.forward;
  const int f = blockIdx.x * kThreads + threadIdx.x, b = blockIdx.z;
  if (f >= x.F) return;
  float sums[kConvMaxTaps] = {}, bias = 0.0f;
  const int first = blockIdx.y * kConvChunk, last = min(first + kConvChunk, x.S);
  for (int t = first; t < last; ++t) {
    const int64_t at = (int64_t(b) * x.S + t) * x.F + f;
    const float pre = pre_activation<T>(x, b, t, f), s = sigmoid(pre);
    const float grad = to_float(static_cast<const T*>(g.grad_y_BSF)[at]) * s * (1.0f + pre * (1.0f - s));
    g.grad_pre_BSF[at] = grad;
    bias += grad;
    bool open = true;
#pragma unroll
    for (int age = 0; age < kConvMaxTaps; ++age) {
      if (age >= x.K) break;
      if (open) sums[age] += grad * input<T>(x, b, t - age, f);
      open = open && !starts(x, b, t - age);
    }
  }
  const int64_t p = int64_t(b) * gridDim.y + blockIdx.y;
#pragma unroll
  for (int age = 0; age < kConvMaxTaps; ++age) {
    if (age < x.K) g.grad_weight_PKF[(p * x.K + x.K - 1 - age) * x.F + f] = sums[age];
  }
  g.grad_bias_PF[p * x.F + f] = bias;
}

// grid: (features, J + S inputs, batch).
template <typename T>
__global__ void input_kernel(CausalConvBackward g) {
  const CausalConv& x = g.forward;
  const int f = blockIdx.x * kThreads + threadIdx.x, b = blockIdx.z, J = x.K - 1;
  if (f >= x.F) return;
  for (int row = blockIdx.y; row < J + x.S; row += gridDim.y) {
    const int p = row - J;
    float grad = 0.0f;
    for (int age = 0; age <= J; ++age) {
      const int t = p + age;
      if (t < 0) continue;
      if (t == x.S) {  // the state handed on
        grad += to_float(static_cast<const T*>(g.grad_state_BJF)[(int64_t(b) * J + J - age) * x.F + f]);
        break;
      }
      if (age > 0 && starts(x, b, t)) break;
      grad += x.weight_FK[int64_t(f) * x.K + J - age] * g.grad_pre_BSF[(int64_t(b) * x.S + t) * x.F + f];
    }
    T* out = static_cast<T*>(p >= 0 ? g.grad_x_BSF : g.grad_initial_BJF);
    out[(p >= 0 ? int64_t(b) * x.S + p : int64_t(b) * J + row) * x.F + f] = from_float<T>(grad);
  }
}

dim3 grid_of(const CausalConv& x, int rows) {
  return dim3((x.F + kThreads - 1) / kThreads, rows < 65535 ? rows : 65535, x.B);
}

}  // namespace

cudaError_t causal_conv_forward(const CausalConv& x, cudaStream_t stream) {
  return with_type(x.type, [&](auto zero) {
    forward_kernel<decltype(zero)><<<grid_of(x, x.S + x.K - 1), kThreads, 0, stream>>>(x);
    return cudaGetLastError();
  });
}

cudaError_t causal_conv_backward(const CausalConvBackward& g, cudaStream_t stream) {
  const CausalConv& x = g.forward;
  if (x.K > kConvMaxTaps) return cudaErrorInvalidValue;
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    weight_kernel<T><<<grid_of(x, (x.S + kConvChunk - 1) / kConvChunk), kThreads, 0, stream>>>(g);
    input_kernel<T><<<grid_of(x, x.S + x.K - 1), kThreads, 0, stream>>>(g);
    return cudaGetLastError();
  });
}

}  // namespace distil_xlstm::kernels::cuda
