// What a chunk needs of its own: gates, P, and the inverse of I + A.
#pragma once

#include "kernels/cuda/delta_rule_work.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kScoreStages = 3;  // tiles of q and k in flight
constexpr int kHalf = L / 2;
constexpr int kPitch = L + 4, kHalfPitch = kHalf + 4;  // of float matrices, in whole 16 bytes; rows in different banks
constexpr int kInverseBytes = (L * kPitch + kHalf * kHalfPitch) * int(sizeof(float));

__device__ inline float log2_sigmoid(float x) {
  return 1.4426950408889634f * (fminf(x, 0.0f) - log1pf(expf(-fabsf(x))));
}

struct ChunkGates {
  float beta[L], entry[L], exit[L], decay[L], rest[L];
  int document[L];
};

// One warp; lane l has tokens 2 l and 2 l + 1. Sums of log g in double: differences of them must keep their digits.
template <typename T>
__device__ void weigh_chunk(const Work<T>& w, int bh, int n, ChunkGates& g) {
  const int lane = threadIdx.x & 31;
  float log_forget[2], beta[2];
  bool starts[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = n * L + 2 * lane + i;
    const bool present = t < w.S;
    const float raw = present ? log2_sigmoid(w.fgate_BSH[w.token(bh, t)]) : 0.0f;
    log_forget[i] = raw < -1e6f ? -1e6f : raw;  // not fmaxf: NaN must stay NaN
    beta[i] = present ? sigmoid(w.igate_BSH[w.token(bh, t)]) : 0.0f;
    starts[i] = present && w.is_start_BS && w.is_start_BS[int64_t(bh / w.H) * w.S + t];
  }
  double sum = double(log_forget[0]) + double(log_forget[1]);
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const double earlier = __shfl_up_sync(~0u, sum, d);
    if (lane >= d) sum += earlier;
  }
  const double all = __shfl_sync(~0u, sum, 31), sums[2] = {sum - double(log_forget[1]), sum};
  const uint32_t first = __ballot_sync(~0u, starts[0]), second = __ballot_sync(~0u, starts[1]), below = (1u << lane) - 1,
                 upto = below | (1u << lane);
  const int documents[2] = {__popc(first & upto) + __popc(second & below), __popc(first & upto) + __popc(second & upto)};
  const int last = __popc(first) + __popc(second);
  const int64_t unit = int64_t(bh) * w.N + n;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    const int64_t at = unit * L + t;
    const float decay = float(sums[i]), rest = float(sums[i] - double(decay));
    const float entry = documents[i] == 0 ? exp2f(decay) : 0.0f, exit = documents[i] == last ? exp2f(float(all - sums[i])) : 0.0f;
    w.beta_UL[at] = g.beta[t] = beta[i];
    w.entry_UL[at] = g.entry[t] = entry;
    w.exit_UL[at] = g.exit[t] = exit;
    w.decay_UL[at] = g.decay[t] = decay;
    w.rest_UL[at] = g.rest[t] = rest;
    w.document_UL[at] = g.document[t] = documents[i];
  }
}

// D_tj; 0 where j is later than t or of another document.
template <typename Gates>
__device__ inline float decay_between(const Gates& g, int t, int j) {
  return j <= t && g.document[j] == g.document[t] ? exp2f((g.decay[t] - g.decay[j]) + (g.rest[t] - g.rest[j])) : 0.0f;
}

// out = factor x y for 32 x 32 matrices of float in shared memory; 128 threads, which then must meet.
__device__ inline void multiply_halves(const float* x, int x_pitch, const float* y, int y_pitch, float factor, float* out, int out_pitch) {
  const int column = threadIdx.x % kHalf, row = threadIdx.x / kHalf * 8;
  float sums[8] = {};
#pragma unroll 2
  for (int k = 0; k < kHalf; k += 4) {
    float b[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i] = y[(k + i) * y_pitch + column];
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const float4 a = *reinterpret_cast<const float4*>(x + (row + r) * x_pitch + k);
      sums[r] += a.x * b[0] + a.y * b[1] + a.z * b[2] + a.w * b[3];
    }
  }
#pragma unroll
  for (int r = 0; r < 8; ++r) out[(row + r) * out_pitch + column] = factor * sums[r];
}

// a (64 x 64 with kPitch, strictly lower, 0 above) becomes (I + A)^-1: by substitution of the halves on the diagonal, then
// [X 0; Y Z]^-1 = [X^-1 0; -Z^-1 Y X^-1 Z^-1]. In float throughout: no power of A is made (docs/mathematics.md 11). 128 threads that have
// met; they meet at the end.
__device__ inline void invert(float* a, float* half) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
  if (warp < 2) {  // a half each, a column a lane
    float* block = a + warp * kHalf * (kPitch + 1);
    float x[kHalf];
#pragma unroll
    for (int t = 0; t < kHalf; ++t) {
      float sums[4] = {};
#pragma unroll
      for (int k = 0; k < t; k += 4) {
        const float4 row = *reinterpret_cast<const float4*>(block + t * kPitch + k);
        sums[0] += row.x * x[k];
        if (k + 1 < t) sums[1] += row.y * x[k + 1];
        if (k + 2 < t) sums[2] += row.z * x[k + 2];
        if (k + 3 < t) sums[3] += row.w * x[k + 3];
      }
      x[t] = (t == lane ? 1.0f : 0.0f) - ((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kHalf; ++t) block[t * kPitch + lane] = x[t];
  }
  __syncthreads();
  float *lower_left = a + kHalf * kPitch, *lower_right = lower_left + kHalf;
  multiply_halves(lower_left, kPitch, a, kPitch, 1.0f, half, kHalfPitch);
  __syncthreads();
  multiply_halves(lower_right, kPitch, half, kHalfPitch, -1.0f, lower_left, kPitch);
  __syncthreads();
}

// One unit: its gates, P = D q k^T and (I + A)^-1 - I.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, 4) scores_kernel(Work<T> w) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ChunkGates g;
  T* tiles = reinterpret_cast<T*>(shared);
  const int64_t unit = blockIdx.x;
  const int bh = int(unit / w.N), n = int(unit % w.N), rows = w.S - n * L;
  const int warp = threadIdx.x / 32, m0 = warp / 2 * 32, n0 = warp % 2 * 32, steps = (w.K + L - 1) / L;
  const int64_t first = w.token(bh, n * L) * w.K, stride = int64_t(w.H) * w.K;
  const auto load = [&](int i) {
    if (i < steps) {
      T* stage = tiles + i % kScoreStages * 2 * kTile;
      load_tile<L, L, kTileThreads>(stage, w.q_BSHK + first + i * L, stride, rows, w.K - i * L);
      load_tile<L, L, kTileThreads>(stage + kTile, w.k_BSHK + first + i * L, stride, rows, w.K - i * L);
    }
    commit_copies();
  };
  load(0);
  load(1);
  if (warp == 0) weigh_chunk(w, bh, n, g);
  float s[2][4][4] = {}, agreement[2][4][4] = {};
  for (int i = 0; i < steps; ++i) {
    wait_copies<1>();
    __syncthreads();
    load(i + 2);
    const T *q = tiles + i % kScoreStages * 2 * kTile, *k = q + kTile;
    multiply_tiles<T, 2, 4, L, L, false, L, true>(s, q, k, m0, n0);
    multiply_tiles<T, 2, 4, L, L, false, L, true>(agreement, k, k, m0, n0);
  }
  __syncthreads();  // tiles become float matrices
  float *a = reinterpret_cast<float*>(shared), *half = a + L * kPitch;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int t = m0 + i * 16 + fragment_row(part);
      const float beta = g.beta[t];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int j = n0 + c * 8 + fragment_column();
        float weights[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float decay = decay_between(g, t, j + e);
          s[i][c][part * 2 + e] *= decay;
          weights[e] = j + e < t ? beta * decay * agreement[i][c][part * 2 + e] : 0.0f;
        }
        *reinterpret_cast<float2*>(a + t * kPitch + j) = make_float2(weights[0], weights[1]);
      }
      store_row<T, 4>(w.scores_ULL + unit * kTile + t * L, s[i], part, n0, L);
    }
  }
  __syncthreads();
  invert(a, half);
  const int t = threadIdx.x / 2, begin = threadIdx.x % 2 * kHalf;
  T* to = w.inverse_ULL + unit * kTile + t * L;
#pragma unroll
  for (int j = begin; j < begin + kHalf; j += 8) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int c = j + 2 * i;
      const float2 x = *reinterpret_cast<const float2*>(a + t * kPitch + c);
      words[i] = pack(c < t ? x.x : 0.0f, c + 1 < t ? x.y : 0.0f, T{});
    }
    *reinterpret_cast<uint4*>(to + j) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

}  // namespace
}  // namespace distil_xlstm::kernels::cuda
