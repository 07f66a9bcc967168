#include "kernels/cuda/softmax_pair.h"

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// kGroup lanes of a warp have a row, each kHeld times W neighbouring values of it.
template <int kGroup, typename Op>
__device__ inline float reduce(float x, Op op) {
#pragma unroll
  for (int offset = kGroup / 2; offset > 0; offset /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, offset, kGroup));
  return x;
}
__device__ inline float larger(float a, float b) {
  return fmaxf(a, b);
}
__device__ inline float sum(float a, float b) {
  return a + b;
}

struct Place {
  int64_t row;
  int lane;
  bool is_inside;
};
template <int kGroup>
__device__ inline Place place_of(const SoftmaxPair& x) {
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x, row = thread / kGroup;
  return {row < x.R ? row : x.R - 1, int(thread % kGroup), row < x.R};  // lanes without a row take part in the shuffles
}

template <typename L, typename F, int W, int kGroup, int kHeld>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ SoftmaxPair x) {
  const Place at = place_of<kGroup>(x);
  float z[kHeld][W], e[2][kHeld][W], factors[2], squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int m = (i * kGroup + at.lane) * W;
    if (m < x.M) load_values(z[i], static_cast<const L*>(x.logits_RM) + at.row * x.M + m);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sign = half == 0 ? 1.0f : -1.0f;
    float top = -INFINITY, sums[2] = {};  // of e and of its squares
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
#pragma unroll
      for (int j = 0; j < W; ++j) top = (i * kGroup + at.lane) * W < x.M ? fmaxf(top, sign * z[i][j]) : top;
    }
    top = reduce<kGroup>(top, larger);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
#pragma unroll
      for (int j = 0; j < W; ++j) {
        const float value = (i * kGroup + at.lane) * W < x.M ? expf(sign * z[i][j] - top) : 0.0f;
        e[half][i][j] = value;
        sums[0] += value;
        sums[1] += value * value;
      }
    }
    factors[half] = (x.is_length ? 1.0f : x.scale) / reduce<kGroup>(sums[0], sum);
    if (x.is_length) squares += factors[half] * factors[half] * reduce<kGroup>(sums[1], sum);
  }
  const float length_factor = x.is_length ? x.scale / sqrtf(squares) : 1.0f;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float factor = factors[half] * length_factor;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int m = (i * kGroup + at.lane) * W;
#pragma unroll
      for (int j = 0; j < W; ++j) e[half][i][j] *= factor;
      if (at.is_inside && m < x.M) store_values(static_cast<F*>(x.features_RF) + (2 * at.row + half) * x.M + m, e[half][i]);
    }
  }
}

// As softmax_pair_backward_aten (ops/feature_map.cpp).
template <typename L, typename F, int W, int kGroup, int kHeld>
__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ SoftmaxPair x) {
  const Place at = place_of<kGroup>(x);
  float g[2][kHeld][W] = {}, y[2][kHeld][W] = {}, means[2] = {}, squares[2] = {}, total = 0.0f, along = 0.0f;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int m = (i * kGroup + at.lane) * W;
      if (m >= x.M) continue;
      load_values(g[half][i], static_cast<const F*>(x.grad_RF) + (2 * at.row + half) * x.M + m);
      load_values(y[half][i], static_cast<const F*>(x.features_RF) + (2 * at.row + half) * x.M + m);
#pragma unroll
      for (int j = 0; j < W; ++j) {
        means[half] += g[half][i][j] * y[half][i][j];
        squares[half] += y[half][i][j] * y[half][i][j];
        total += y[half][i][j];
      }
    }
    means[half] = reduce<kGroup>(means[half], sum);
  }
  float inverse = 1.0f / x.scale;
  if (x.is_length) {
    along = (means[0] + means[1]) / (x.scale * x.scale);
    inverse = 2.0f / reduce<kGroup>(total, sum);
#pragma unroll
    for (int half = 0; half < 2; ++half) means[half] -= along * reduce<kGroup>(squares[half], sum);
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int m = (i * kGroup + at.lane) * W;
    float grad[W];
#pragma unroll
    for (int j = 0; j < W; ++j) {
      grad[j] = y[0][i][j] * (g[0][i][j] - y[0][i][j] * along - means[0] * inverse) -
                y[1][i][j] * (g[1][i][j] - y[1][i][j] * along - means[1] * inverse);
    }
    if (at.is_inside && m < x.M) store_values(static_cast<L*>(x.grad_RM) + at.row * x.M + m, grad);
  }
}

template <typename L, typename F, int W, int kGroup, int kHeld>
cudaError_t launch(const SoftmaxPair& x, bool is_backward, cudaStream_t stream) {
  const int64_t blocks = (x.R * kGroup + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
  if (is_backward) {
    backward_kernel<L, F, W, kGroup, kHeld><<<unsigned(blocks), kThreads, 0, stream>>>(x);
  } else {
    forward_kernel<L, F, W, kGroup, kHeld><<<unsigned(blocks), kThreads, 0, stream>>>(x);
  }
  return cudaGetLastError();
}

// As few lanes as hold a row.
template <typename L, typename F, int W>
cudaError_t launch_width(const SoftmaxPair& x, bool is_backward, cudaStream_t stream) {
  const int vectors = (x.M + W - 1) / W;
  if (vectors <= 4) return launch<L, F, W, 4, 1>(x, is_backward, stream);
  if (vectors <= 8) return launch<L, F, W, 8, 1>(x, is_backward, stream);
  if (vectors <= 16) return launch<L, F, W, 16, 1>(x, is_backward, stream);
  if (vectors <= 32) return launch<L, F, W, 32, 1>(x, is_backward, stream);
  if (vectors <= 128) return launch<L, F, W, 32, 4>(x, is_backward, stream);
  return launch<L, F, W, 32, kSoftmaxPairMaxWidth / 32 / W>(x, is_backward, stream);
}

cudaError_t run(const SoftmaxPair& x, bool is_backward, cudaStream_t stream) {
  if (x.M < 1 || x.M > kSoftmaxPairMaxWidth || x.R < 1) return cudaErrorInvalidValue;
  return with_type(x.logits_type, [&](auto logits) {
    return with_type(x.features_type, [&](auto features) {
      using L = decltype(logits);
      using F = decltype(features);
      if (x.M % 4 == 0 && are_aligned({x.logits_RM, x.features_RF, x.grad_RF, x.grad_RM}))
        return launch_width<L, F, 4>(x, is_backward, stream);
      return launch_width<L, F, 1>(x, is_backward, stream);
    });
  });
}

}  // namespace

cudaError_t softmax_pair_forward(const SoftmaxPair& x, cudaStream_t stream) {
  return run(x, /*is_backward=*/false, stream);
}

cudaError_t softmax_pair_backward(const SoftmaxPair& x, cudaStream_t stream) {
  return run(x, /*is_backward=*/true, stream);
}

}  // namespace distil_xlstm::kernels::cuda
