// Score tiles inside a chunk, and the divisors of h.
#pragma once

#include "kernels/cuda/mlstm_work.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

// sum of 32 elements of row `row` of a 64 x 64 tile, from column 32 half on, times f(column)
template <typename T, typename F>
__device__ inline float dot_half_row(const T* tile, int row, int half, const F& f) {
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const uint4 words = *reinterpret_cast<const uint4*>(tile + tile_offset<L>(row, half * 4 + c));
    const uint32_t all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = unpack(all[i], T{}), y = f(half * 32 + c * 8 + i * 2);
      sum += x.x * y.x + x.y * y.y;
    }
  }
  return sum;
}

// One chunk of one head: S-bar and the divisors; backward also P (docs/mathematics.md 4). Both leave divided by the divisor, ready for the
// products.
template <typename T, bool kBackward>
__global__ void __launch_bounds__(kTileThreads) scores_kernel(Work<T> w) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float decay[L], row_shift[L], col_shift[L], from_state[L], grad_dot[L], row_sums[2][L], inverse[L], pull[L];
  __shared__ int document[L];
  constexpr int kStage = (kBackward ? 3 : 2) * kTile;
  T* tiles = reinterpret_cast<T*>(shared);
  const int64_t unit = blockIdx.x;
  const int bh = int(unit / w.N), n = int(unit % w.N), rows = w.length - n * L;
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, m0 = warp / 2 * 32, n0 = warp % 2 * 32;
  const int key_steps = (w.K + L - 1) / L, steps = key_steps + (kBackward ? (w.V + L - 1) / L : 0);
  const int64_t token = w.token(bh, n * L);
  const auto load = [&](int i) {
    T* stage = tiles + i % kStages * kStage;
    if (i < key_steps) {
      const int64_t at = token * w.K + i * L, stride = int64_t(w.H) * w.K;
      load_tile<L, L, kTileThreads>(stage, w.q_BSHK + at, stride, rows, w.K - i * L);
      load_tile<L, L, kTileThreads>(stage + kTile, w.k_BSHK + at, stride, rows, w.K - i * L);
    } else if (kBackward && i < steps) {
      const int v0 = (i - key_steps) * L;
      const int64_t at = token * w.V + v0, stride = int64_t(w.H) * w.V;
      load_tile<L, L, kTileThreads>(stage, w.grad_h_BSHV + at, stride, rows, w.V - v0);
      load_tile<L, L, kTileThreads>(stage + kTile, w.v_BSHV + at, stride, rows, w.V - v0);
      load_tile<L, L, kTileThreads>(stage + 2 * kTile, w.read_h_BSHV + at, stride, rows, w.V - v0);
    }
    commit_copies();
  };
  load(0);
  load(1);
  if (threadIdx.x < L) {
    const int64_t at = unit * L + threadIdx.x;
    decay[threadIdx.x] = w.decay_UL[at];
    row_shift[threadIdx.x] = w.row_shift_UL[at];
    col_shift[threadIdx.x] = w.col_shift_UL[at];
    document[threadIdx.x] = w.document_UL[at];
  }
  const float* normalizer = w.normalizer_BHMK + (int64_t(bh) * (w.N + 1) + n) * w.Kp;
  const int row = threadIdx.x / 2, half = threadIdx.x % 2;
  float s[2][4][4] = {}, p[2][4][4] = {}, state_sum = 0.0f, grad_sum = 0.0f;
  for (int i = 0; i < steps; ++i) {
    wait_copies<1>();
    __syncthreads();
    load(i + 2);
    const T *a = tiles + i % kStages * kStage, *b = a + kTile;
    if (i < key_steps) {
      multiply_tiles<T, 2, 4, L, L, false, L, true>(s, a, b, m0, n0);
      state_sum += dot_half_row(a, row, half, [&](int col) { return *reinterpret_cast<const float2*>(normalizer + i * L + col); });
    } else if constexpr (kBackward) {
      multiply_tiles<T, 2, 4, L, L, false, L, true>(p, a, b, m0, n0);
      const T* h = a + 2 * kTile;
      grad_sum += dot_half_row(a, row, half, [&](int col) {
        return unpack(*reinterpret_cast<const uint32_t*>(h + tile_offset<L>(row, col / 8) + col % 8), T{});
      });
    }
  }
  state_sum += __shfl_xor_sync(~0u, state_sum, 1);
  grad_sum += __shfl_xor_sync(~0u, grad_sum, 1);
  if (half == 0) {
    from_state[row] = state_sum;
    grad_dot[row] = grad_sum;
  }

  float D[2][4][4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int t = m0 + i * 16 + part * 8 + lane / 4;
      float sum = 0.0f;
#pragma unroll
      for (int c = 0; c < 4; ++c) {
#pragma unroll
        for (int e = part * 2; e < part * 2 + 2; ++e) {
          const int j = n0 + c * 8 + lane % 4 * 2 + e % 2;
          const bool valid = j <= t && document[j] == document[t];
          D[i][c][e] = valid ? w.scale * exp2f((decay[t] - decay[j]) + (row_shift[t] + col_shift[j])) : 0.0f;
          s[i][c][e] *= D[i][c][e];
          sum += s[i][c][e];
        }
      }
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane % 4 == 0) row_sums[warp % 2][t] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x < L) {
    const int t = threadIdx.x;
    const int64_t at = unit * L + t;
    const float entry = w.entry_UL[at], bound = w.bound_UL[at], r = row_sums[0][t] + row_sums[1][t] + entry * from_state[t];
    const float size = w.plain_sum ? r : fabsf(r), inv = 1.0f / (fmaxf(size, bound) + (w.plain_sum ? 0.0f : kEps));
    inverse[t] = inv;
    pull[t] = size > bound ? (r > 0.0f ? -grad_dot[t] : grad_dot[t]) : 0.0f;
    w.read_UL[at] = entry * inv;
    if (kBackward) w.pull_UL[at] = pull[t];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int t = m0 + i * 16 + part * 8 + lane / 4;
      const float inv = inverse[t], g = kBackward ? pull[t] : 0.0f;
#pragma unroll
      for (int c = 0; c < 4; c += 2) {
        const int64_t at = unit * kTile + t * L + n0 + c * 8 + gathered_column();
        const auto words = [&](const auto& value) {
          return gather_four(pack(value(c, part * 2), value(c, part * 2 + 1), T{}),
                             pack(value(c + 1, part * 2), value(c + 1, part * 2 + 1), T{}));
        };
        *reinterpret_cast<uint2*>(w.scores_ULL + at) = words([&](int f, int e) { return s[i][f][e] * inv; });
        if constexpr (kBackward) {
          *reinterpret_cast<uint2*>(w.grad_scores_ULL + at) = words([&](int f, int e) { return (p[i][f][e] + g) * inv * D[i][f][e]; });
        }
      }
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::kernels::cuda
