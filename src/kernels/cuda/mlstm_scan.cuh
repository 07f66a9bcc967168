// The states that enter each chunk; backward, the gradients of those that leave it.
#pragma once

#include "kernels/cuda/mlstm_work.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

__device__ inline float sum_of_warp(float x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

// Where a scan starts, what it multiplies and where it puts its results.
template <typename T, bool kReverse>
struct Scan {
  const T *x_BSHK, *y_BSHV;
  const float *weight_UL, *initial_cell_BHKV, *initial_normalizer_BHK;
  float *cell_BHKV, *normalizer_BHK;
  __device__ explicit Scan(const Work<T>& w)
      : x_BSHK(kReverse ? w.q_BSHK : w.k_BSHK),
        y_BSHV(kReverse ? w.grad_h_BSHV : w.v_BSHV),
        weight_UL(kReverse ? w.read_UL : w.exit_UL),
        initial_cell_BHKV(kReverse ? w.grad_cell_BHKV : w.initial_cell_BHKV),
        initial_normalizer_BHK(kReverse ? w.grad_normalizer_BHK : w.initial_normalizer_BHK),
        cell_BHKV(kReverse ? w.grad_initial_cell_BHKV : w.cell_BHKV),
        normalizer_BHK(kReverse ? w.grad_initial_normalizer_BHK : w.normalizer_BHK) {}
};

// One block keeps KT x VT of one head's C in registers and walks over the chunks (docs/mathematics.md 4):
//   forward  C <- carry C + (exit k)^T v,          n <- carry n + sum exit k              storing what enters each chunk
//   reverse  dC <- carry dC + (read q)^T dh,       dn <- carry dn + sum pull (read q)     storing what arrives at each chunk's end, and
//            the partial sums of <C, dC> there
template <typename T, int KT, int VT, bool kReverse>
__global__ void __launch_bounds__(kScanThreads, 2) scan_kernel(Work<T> w) {
  extern __shared__ __align__(128) unsigned char shared[];
  constexpr int MT = KT / 64, NT = VT / 16, kStage = L * (KT + VT), kPieces = L * KT / (8 * kScanThreads), kWarps = kScanThreads / 32;
  __shared__ float sums[2][kWarps], normalizer_sums[2][kWarps][KT];
  T* tiles = reinterpret_cast<T*>(shared);
  const Scan<T, kReverse> scan(w);
  const int v_tiles = (w.V + VT - 1) / VT, tile = blockIdx.x % w.state_tiles, bh = blockIdx.x / w.state_tiles;
  const int k0 = tile / v_tiles * KT, v0 = tile % v_tiles * VT;
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, m0 = warp / 2 * (KT / 4), n0 = warp % 2 * (VT / 2);
  const int N = w.N, piece = threadIdx.x % (KT / 8), d = k0 + threadIdx.x;
  const bool has_normalizer = v0 == 0;

  const auto chunk_of = [&](int i) { return kReverse ? N - 1 - i : i; };
  const auto load = [&](int i) {
    if (i < N) {
      const int t = chunk_of(i) * L, rows = w.length - t;
      T* stage = tiles + i % kStages * kStage;
      load_tile<L, KT, kScanThreads>(stage, scan.x_BSHK + w.token(bh, t) * w.K + k0, int64_t(w.H) * w.K, rows, w.K - k0);
      load_tile<L, VT, kScanThreads>(stage + L * KT, scan.y_BSHV + w.token(bh, t) * w.V + v0, int64_t(w.H) * w.V, rows, w.V - v0);
    }
    commit_copies();
  };
  float weights[kPieces], pulls[kPieces], carry = 0.0f;  // of the rows that this thread copies
  const auto load_weights = [&](int i) {
    if (i >= N) return;
    const int64_t unit = int64_t(bh) * N + chunk_of(i);
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const int row = (threadIdx.x + p * kScanThreads) / (KT / 8);
      weights[p] = scan.weight_UL[unit * L + row];
      pulls[p] = kReverse ? w.pull_UL[unit * L + row] : 1.0f;
    }
    carry = w.carry_U[unit];
  };
  load(0);
  load(1);
  load_weights(0);

  float acc[MT][NT][4], normalizer[8] = {};  // normalizer: the part of this thread's piece of columns that came with its rows
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int j = 0; j < NT; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = k0 + m0 + i * 16 + e / 2 * 8 + lane / 4, col = v0 + n0 + j * 8 + lane % 4 * 2 + e % 2;
        acc[i][j][e] = scan.initial_cell_BHKV && row < w.cell_K && col < w.cell_V
                           ? scan.initial_cell_BHKV[(int64_t(bh) * w.cell_K + row) * w.cell_V + col]
                           : 0.0f;
      }
    }
  }
  if (scan.initial_normalizer_BHK && has_normalizer && threadIdx.x < KT / 8) {
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const int col = k0 + piece * 8 + c;
      normalizer[c] = col < w.cell_K ? scan.initial_normalizer_BHK[int64_t(bh) * w.cell_K + col] : 0.0f;
    }
  }

  // Gives the state before step i (or after the last) to the other kernels.
  const auto emit = [&](int i) {
    const int border = kReverse ? N - i : i;  // in the order of tokens
    const int64_t read = int64_t(bh) * (N + 1) + border, written = kReverse ? int64_t(bh) * N + border - 1 : read;
    T* cells = kReverse ? w.grad_cell_UKV : w.cell_BHMKV;
    const bool stores = kReverse ? i < N : w.stores_cells;
    float sum = 0.0f;
    uint2 others[MT][2][NT / 2];  // C, all asked for before the first is used
    if constexpr (kReverse) {
#pragma unroll
      for (int a = 0; a < MT; ++a) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = k0 + m0 + a * 16 + half * 8 + lane / 4;
#pragma unroll
          for (int j = 0; j < NT; j += 2) {
            const int col = v0 + n0 + j * 8 + gathered_column();
            const bool inside = row < w.K && col < w.V;
            others[a][half][j / 2] = inside ? *reinterpret_cast<const uint2*>(w.cell_BHMKV + (read * w.K + row) * w.V + col) : uint2{};
          }
        }
      }
    }
#pragma unroll
    for (int a = 0; a < MT; ++a) {
      if (!kReverse && !stores) break;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = k0 + m0 + a * 16 + half * 8 + lane / 4;
#pragma unroll
        for (int j = 0; j < NT; j += 2) {
          const int col = v0 + n0 + j * 8 + gathered_column();
          const uint2 words = gather_four(pack(acc[a][j][half * 2], acc[a][j][half * 2 + 1], T{}),
                                          pack(acc[a][j + 1][half * 2], acc[a][j + 1][half * 2 + 1], T{}));
          if (stores && row < w.K && col < w.V) *reinterpret_cast<uint2*>(cells + (written * w.K + row) * w.V + col) = words;
          if constexpr (kReverse) {
            const uint2 c = others[a][half][j / 2];
            const float2 x = unpack(words.x, T{}), y = unpack(words.y, T{}), cx = unpack(c.x, T{}), cy = unpack(c.y, T{});
            sum += x.x * cx.x + x.y * cx.y + y.x * cy.x + y.y * cy.y;
          }
        }
      }
    }
    if (has_normalizer) {
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        const int col = k0 + piece * 8 + c;
        float part = normalizer[c];
        if (kReverse && col < w.Kp) sum += part * w.normalizer_BHMK[read * w.Kp + col];
#pragma unroll
        for (int lanes = KT / 8; lanes < 32; lanes *= 2) part += __shfl_xor_sync(~0u, part, lanes);
        if (lane < KT / 8) normalizer_sums[i & 1][warp][piece * 8 + c] = part;
      }
    }
    if constexpr (kReverse) {
      sum = sum_of_warp(sum);
      if (lane == 0) sums[i & 1][warp] = sum;
    }
  };
  // The sums over the block, after a barrier that follows emit(i). to: where the normalizer goes, or null.
  const auto finish = [&](int i, float* to, int width) {
    if (to && has_normalizer && threadIdx.x < KT && d < width) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < kWarps; ++j) sum += normalizer_sums[i & 1][j][threadIdx.x];
      to[d] = sum;
    }
    if (!kReverse || threadIdx.x != 0) return;
    float sum = 0.0f;
    for (int j = 0; j < kWarps; ++j) sum += sums[i & 1][j];
    w.leaving_BHMX[(int64_t(bh) * (N + 1) + N - i) * w.state_tiles + tile] = sum;
  };

  for (int i = 0; i < N; ++i) {
    T *x = tiles + i % kStages * kStage, *y = x + L * KT;
    emit(i);
    wait_copies<1>();
    const float decay = carry;
#pragma unroll
    for (int c = 0; c < 8; ++c) normalizer[c] *= decay;
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {  // each thread weighs the pieces that it copied itself
      uint4* place = reinterpret_cast<uint4*>(x + tile_offset<KT>((threadIdx.x + p * kScanThreads) / (KT / 8), piece));
      const uint4 words = *place;
      uint32_t all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float2 pair = unpack(all[c], T{});
        const float2 weighed = make_float2(pair.x * weights[p], pair.y * weights[p]);
        normalizer[2 * c] += weighed.x * pulls[p];
        normalizer[2 * c + 1] += weighed.y * pulls[p];
        all[c] = pack(weighed.x, weighed.y, T{});
      }
      *place = make_uint4(all[0], all[1], all[2], all[3]);
    }
    __syncthreads();
    load(i + 2);
    load_weights(i + 1);
    const int64_t before = kReverse ? int64_t(bh) * N + N - 1 - i : int64_t(bh) * (N + 1) + i;
    finish(i, kReverse ? w.grad_normalizer_UK + before * w.Kp : w.stores_cells ? w.normalizer_BHMK + before * w.Kp : nullptr, w.Kp);
#pragma unroll
    for (int a = 0; a < MT; ++a) {
#pragma unroll
      for (int j = 0; j < NT; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[a][j][e] *= decay;
      }
    }
    multiply_tiles<T, MT, NT, L, KT, true, VT, false>(acc, x, y, m0, n0);
  }
  emit(N);
  __syncthreads();
  finish(N, scan.normalizer_BHK ? scan.normalizer_BHK + int64_t(bh) * w.cell_K : nullptr, w.cell_K);
  if (!kReverse && w.stores_cells) finish(N, w.normalizer_BHMK + (int64_t(bh) * (N + 1) + N) * w.Kp, w.Kp);
  if (scan.cell_BHKV) {
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int j = 0; j < NT; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = k0 + m0 + i * 16 + e / 2 * 8 + lane / 4, col = v0 + n0 + j * 8 + lane % 4 * 2 + e % 2;
          if (row < w.cell_K && col < w.cell_V) scan.cell_BHKV[(int64_t(bh) * w.cell_K + row) * w.cell_V + col] = acc[i][j][e];
        }
      }
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::kernels::cuda
