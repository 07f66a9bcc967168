#include "kernels/cuda/gated.h"

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kColumnThreads = 128;
constexpr float kSeluAlpha = 1.6732632423543772f, kSeluScale = 1.0507009873554805f;

struct ValueAndSlope {
  float value, slope;
};

// T: type in memory.
template <typename T>
__device__ inline ValueAndSlope activate(Activation act, float x) {
  switch (act) {
    case Activation::gelu: {
      if constexpr (sizeof(T) == 4) {
        const float cdf = 0.5f * erfcf(-0.70710678f * x);
        return {x * cdf, cdf + x * 0.39894228040143268f * expf(-0.5f * x * x)};
      }
      // erf by Abramowitz and Stegun 7.1.26, within 1.5e-7, enough for half precision: it shares its exponential with the slope, and erff's
      // branches cost more than the memory here.
      const float t = __fdividef(1.0f, fmaf(0.3275911f * 0.70710678f, fabsf(x), 1.0f)), e = __expf(-0.5f * x * x);
      float p = fmaf(1.061405429f, t, -1.453152027f);
      p = fmaf(p, t, 1.421413741f);
      p = fmaf(p, t, -0.284496736f);
      p = fmaf(p, t, 0.254829592f);
      const float tail = 0.5f * p * t * e, cdf = x > 0.0f ? 1.0f - tail : tail;
      return {x * cdf, cdf + x * 0.39894228040143268f * e};
    }
    case Activation::relu:
      return {x <= 0.0f ? 0.0f : x, x <= 0.0f ? 0.0f : 1.0f};  // not fmaxf: NaN must stay NaN
    case Activation::relu_squared: {
      const float positive = x <= 0.0f ? 0.0f : x;
      return {positive * positive, 2.0f * positive};
    }
    case Activation::sigmoid: {
      const float s = sigmoid_for<T>(x);
      return {s, s * (1.0f - s)};
    }
    case Activation::swish: {
      const float s = sigmoid_for<T>(x);
      return {x * s, s * (1.0f + x * (1.0f - s))};
    }
    case Activation::selu: {
      const float grown = kSeluAlpha * expm1f(x);
      return {kSeluScale * (x > 0.0f ? x : grown), kSeluScale * (x > 0.0f ? 1.0f : grown + kSeluAlpha)};
    }
  }
  return {};
}

struct Place {
  int64_t row;
  int column;
};
// Of the thread's W values in rows of `width`; row -1: none left.
template <int W>
__device__ inline Place place(int64_t N, int width) {
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const unsigned per_row = unsigned(width) / W;
  const int64_t row = at >> 32 == 0 ? int64_t(unsigned(at) / per_row) : at / per_row;  // in 32 bits where it fits: the shorter division
  return row < N ? Place{row, int(at - row * per_row) * W} : Place{-1, 0};
}

template <typename T, int W>
__global__ void __launch_bounds__(kThreads) activation_forward_kernel(const __grid_constant__ GatedActivation x) {
  const Place at = place<W>(x.N, x.P);
  if (at.row < 0) return;
  const int64_t in = at.row * x.stride + at.column;
  float gate[W], value[W];
  load_values(gate, static_cast<const T*>(x.gate_NP) + in);
  load_values(value, static_cast<const T*>(x.value_NP) + in);
#pragma unroll
  for (int i = 0; i < W; ++i) value[i] *= activate<T>(x.act, gate[i]).value;
  store_values(static_cast<T*>(x.out_NP) + at.row * x.P + at.column, value);
}

template <typename T, int W>
__global__ void __launch_bounds__(kThreads) activation_backward_kernel(const __grid_constant__ GatedActivation x) {
  const Place at = place<W>(x.N, x.P);
  if (at.row < 0) return;
  const int64_t in = at.row * x.stride + at.column, out = at.row * x.grad_stride + at.column;
  float gate[W], value[W], grad[W];
  load_values(gate, static_cast<const T*>(x.gate_NP) + in);
  load_values(value, static_cast<const T*>(x.value_NP) + in);
  load_values(grad, static_cast<const T*>(x.grad_out_NP) + at.row * x.P + at.column);
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const ValueAndSlope a = activate<T>(x.act, gate[i]);
    gate[i] = grad[i] * value[i] * a.slope;
    value[i] = grad[i] * a.value;
  }
  store_values(static_cast<T*>(x.grad_gate_NP) + out, gate);
  store_values(static_cast<T*>(x.grad_value_NP) + out, value);
}

template <typename T, typename H, int W>
__global__ void __launch_bounds__(kThreads) skip_forward_kernel(const __grid_constant__ SkipGate x) {
  const Place at = place<W>(x.N, x.F);
  if (at.row < 0) return;
  const int64_t i0 = at.row * x.F + at.column;
  float h[W], c[W], z[W], skip[W];
  load_values(h, static_cast<const H*>(x.h_NF) + i0);
  load_values(c, static_cast<const T*>(x.c_NF) + i0);
  load_values(z, static_cast<const T*>(x.z_NF) + i0);
  load_values(skip, x.skip_F + at.column);
#pragma unroll
  for (int i = 0; i < W; ++i) h[i] = (h[i] + skip[i] * c[i]) * z[i] * sigmoid_for<T>(z[i]);
  store_values(static_cast<T*>(x.out_NF) + i0, h);
}

// A thread keeps W features over kSkipGateRows rows: skip and its gradient stay in registers.
template <typename T, typename H, int W>
__global__ void __launch_bounds__(kColumnThreads) skip_backward_kernel(const __grid_constant__ SkipGate x) {
  const int column = int(blockIdx.x * kColumnThreads + threadIdx.x) * W;
  if (column >= x.F) return;
  float skip[W], grad_skip[W] = {};
  load_values(skip, x.skip_F + column);
  const int64_t first = int64_t(blockIdx.y) * kSkipGateRows, last = min(first + kSkipGateRows, x.N);
#pragma unroll 2
  for (int64_t row = first; row < last; ++row) {
    const int64_t at = row * x.F + column;
    float h[W], c[W], z[W], grad[W], grad_z[W], grad_c[W];
    load_values(grad, static_cast<const T*>(x.grad_out_NF) + at);
    load_values(h, static_cast<const H*>(x.h_NF) + at);
    load_values(c, static_cast<const T*>(x.c_NF) + at);
    load_values(z, static_cast<const T*>(x.z_NF) + at);
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float s = sigmoid_for<T>(z[i]), sum = h[i] + skip[i] * c[i];
      grad_z[i] = grad[i] * sum * s * (1.0f + z[i] * (1.0f - s));
      h[i] = grad[i] * z[i] * s;  // of the sum, and so of h
      grad_c[i] = h[i] * skip[i];
      grad_skip[i] += h[i] * c[i];
    }
    store_values(static_cast<H*>(x.grad_h_NF) + at, h);
    store_values(static_cast<T*>(x.grad_c_NF) + at, grad_c);
    store_values(static_cast<T*>(x.grad_z_NF) + at, grad_z);
  }
  store_values(x.grad_skip_RF + int64_t(blockIdx.y) * x.F + column, grad_skip);
}

unsigned blocks(int64_t count, int64_t size) {
  return unsigned((count + size - 1) / size);
}

// f(T{}, std::integral_constant<int, W>{}) with 16 bytes of values, or 1 where rows do not allow that.
template <typename F>
cudaError_t with_vectors(Type type, bool is_aligned, std::initializer_list<int64_t> multiples, const F& f) {
  return with_type(type, [&](auto zero) {
    constexpr int W = kVectorSize<decltype(zero)>;
    for (const int64_t x : multiples) is_aligned = is_aligned && x % W == 0;
    return is_aligned ? f(zero, std::integral_constant<int, W>{}) : f(zero, std::integral_constant<int, 1>{});
  });
}

template <typename F>
cudaError_t with_skip_types(const SkipGate& x, const F& f) {
  const bool is_aligned =
      are_aligned({x.h_NF, x.skip_F, x.c_NF, x.z_NF, x.out_NF, x.grad_out_NF, x.grad_h_NF, x.grad_c_NF, x.grad_z_NF, x.grad_skip_RF});
  return with_vectors(x.type, is_aligned, {x.F}, [&](auto zero, auto width) {
    if (x.h_type == x.type) return f(zero, zero, width);
    if constexpr (std::is_same_v<decltype(zero), __half>) {
      if (x.h_type == Type::bfloat16) return f(zero, __nv_bfloat16{}, width);
    }
    return cudaErrorInvalidValue;
  });
}

}  // namespace

cudaError_t gated_activation_forward(const GatedActivation& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  return with_vectors(x.type, are_aligned({x.gate_NP, x.value_NP, x.out_NP}), {x.P, x.stride}, [&](auto zero, auto width) {
    constexpr int W = decltype(width)::value;
    activation_forward_kernel<decltype(zero), W><<<blocks(x.N * (x.P / W), kThreads), kThreads, 0, stream>>>(x);
    return cudaGetLastError();
  });
}

cudaError_t gated_activation_backward(const GatedActivation& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  const bool is_aligned = are_aligned({x.gate_NP, x.value_NP, x.grad_out_NP, x.grad_gate_NP, x.grad_value_NP});
  return with_vectors(x.type, is_aligned, {x.P, x.stride, x.grad_stride}, [&](auto zero, auto width) {
    constexpr int W = decltype(width)::value;
    activation_backward_kernel<decltype(zero), W><<<blocks(x.N * (x.P / W), kThreads), kThreads, 0, stream>>>(x);
    return cudaGetLastError();
  });
}

cudaError_t skip_gate_forward(const SkipGate& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  return with_skip_types(x, [&](auto t, auto h, auto width) {
    constexpr int W = decltype(width)::value;
    skip_forward_kernel<decltype(t), decltype(h), W><<<blocks(x.N * (x.F / W), kThreads), kThreads, 0, stream>>>(x);
    return cudaGetLastError();
  });
}

cudaError_t skip_gate_backward(const SkipGate& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  return with_skip_types(x, [&](auto t, auto h, auto width) {
    constexpr int W = decltype(width)::value;
    const dim3 grid(blocks(x.F / W, kColumnThreads), blocks(x.N, kSkipGateRows));
    skip_backward_kernel<decltype(t), decltype(h), W><<<grid, kColumnThreads, 0, stream>>>(x);
    return cudaGetLastError();
  });
}

}  // namespace distil_xlstm::kernels::cuda
