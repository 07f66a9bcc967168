// The states that enter each chunk and what the tokens write; backward, the gradients of both.
#pragma once

#include "kernels/cuda/delta_rule_work.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

// One block of 8 warps walks over the chunks with 64 columns of one head's C, all its keys (KP, zeros beyond K), in registers: warp i has
// KP / 4 rows from i / 2 and 32 columns from i % 2 on. Of the 64 tokens of a chunk it has 16 from i / 2 on, with the same columns.
template <typename T, int KP>
struct ScanPlace {
  static constexpr int MT = KP / 64;
  int bh, v0, key, token, column;
  __device__ explicit ScanPlace(const Work<T>& w) {
    const int v_tiles = (w.V + L - 1) / L, warp = threadIdx.x / 32;
    bh = blockIdx.x / v_tiles;
    v0 = blockIdx.x % v_tiles * L;
    key = warp / 2 * (KP / 4);
    token = warp / 2 * 16;
    column = warp % 2 * 32;
  }

  // Calls f(row, column, accumulator).
  template <typename F>
  __device__ void for_state(const Work<T>& w, float (&acc)[MT][4][4], const F& f) const {
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = key + i * 16 + fragment_row(e / 2), col = v0 + column + j * 8 + fragment_column() + e % 2;
          f(row < w.K && col < w.V, (int64_t(bh) * w.K + row) * w.V + col, acc[i][j][e]);
        }
      }
    }
  }
  // From [B][H][K][V] in float, zeros without.
  __device__ void read_state(const Work<T>& w, const float* state_BHKV, float (&acc)[MT][4][4]) const {
    for_state(w, acc, [&](bool inside, int64_t at, float& x) { x = state_BHKV && inside ? state_BHKV[at] : 0.0f; });
  }
  __device__ void write_state(const Work<T>& w, float* state_BHKV, float (&acc)[MT][4][4]) const {
    if (!state_BHKV) return;
    for_state(w, acc, [&](bool inside, int64_t at, float& x) {
      if (inside) state_BHKV[at] = x;
    });
  }
  // In 2 bytes to the tile [KP][64] and to a unit's [K][V].
  __device__ void emit_state(const Work<T>& w, const float (&acc)[MT][4][4], T* tile, T* cells_KV) const {
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int row = key + i * 16 + fragment_row(part);
#pragma unroll
        for (int j = 0; j < 4; ++j) tile_word<L>(tile, row, column + j * 8) = pack(acc[i][j][part * 2], acc[i][j][part * 2 + 1], T{});
        store_row<T, 4>(cells_KV + int64_t(row) * w.V + v0, acc[i], part, column, row < w.K ? w.V - v0 : 0);
      }
    }
  }
  // In 2 bytes to a unit's [64][V].
  __device__ void emit_tokens(const Work<T>& w, const float (&x)[4][4], T* tokens_LV) const {
#pragma unroll
    for (int part = 0; part < 2; ++part)
      store_row<T, 4>(tokens_LV + int64_t(token + fragment_row(part)) * w.V + v0, x, part, column, w.V - v0);
  }
  __device__ void to_tile(const float (&x)[4][4], const float (&factor)[2], T* tile) const {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        tile_word<L>(tile, token + fragment_row(part), column + j * 8) =
            pack(factor[part] * x[j][part * 2], factor[part] * x[j][part * 2 + 1], T{});
    }
  }
  static __device__ void scale(float (&acc)[MT][4][4], float factor) {
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] *= factor;
      }
    }
  }
};

template <int KP>
constexpr int kScanBlocks = KP <= 128 ? 3 : 2;  // that an SM has room for

template <int KP>
constexpr int kStatesTiles = 2 * kTile + 2 * L * KP;  // k; v, then what is written; inverse; C
template <int KP>
constexpr int kGradientsTiles = 2 * kTile + 3 * L * KP;  // q; k; P, then the inverse; dh and what follows from it; dC

// Chunk after chunk: R = beta (v - e k C),  u = (I + A)^-1 R,  C <- e_L C + k^T (x u). Of the inverse, I works in float.
template <typename T, int KP>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks<KP>) states_kernel(Work<T> w) {
  extern __shared__ __align__(128) unsigned char shared[];
  T *k_tile = reinterpret_cast<T*>(shared), *v_tile = k_tile + L * KP, *inverse = v_tile + kTile, *cell = inverse + kTile;
  const ScanPlace<T, KP> at(w);
  const int N = w.N;
  const auto load_inverse = [&](int n) {
    if (n < N) load_tile<L, L, kScanThreads>(inverse, w.inverse_ULL + (int64_t(at.bh) * N + n) * kTile, L, L, L);
    commit_copies();
  };
  const auto load_inputs = [&](int n) {
    if (n < N) {
      const int64_t token = w.token(at.bh, n * L);
      load_tile<L, KP, kScanThreads>(k_tile, w.k_BSHK + token * w.K, int64_t(w.H) * w.K, w.S - n * L, w.K);
      load_tile<L, L, kScanThreads>(v_tile, w.v_BSHV + token * w.V + at.v0, int64_t(w.H) * w.V, w.S - n * L, w.V - at.v0);
    }
    commit_copies();
  };
  load_inverse(0);
  load_inputs(0);
  constexpr int MT = ScanPlace<T, KP>::MT;
  float acc[MT][4][4];
  at.read_state(w, w.initial_cell_BHKV, acc);
  for (int n = 0; n < N; ++n) {
    const int64_t unit = int64_t(at.bh) * N + n;
    float beta[2], entry[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int64_t t = unit * L + at.token + fragment_row(part);
      beta[part] = w.beta_UL[t];
      entry[part] = w.entry_UL[t];
    }
    at.emit_state(w, acc, cell, w.cells_UKV + unit * w.K * w.V);
    wait_copies<0>();
    __syncthreads();
    float u[1][4][4] = {};
    multiply_tiles<T, 1, 4, KP, KP, false, L, false>(u, k_tile, cell, at.token, at.column);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int t = at.token + fragment_row(part);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 v = tile_pair<L>(v_tile, t, at.column + j * 8);
        u[0][j][part * 2] = beta[part] * (v.x - entry[part] * u[0][j][part * 2]);
        u[0][j][part * 2 + 1] = beta[part] * (v.y - entry[part] * u[0][j][part * 2 + 1]);
      }
    }
    constexpr float kOnes[2] = {1.0f, 1.0f};
    at.to_tile(u[0], kOnes, v_tile);  // each thread where it read v
    const float exit[2] = {w.exit_UL[unit * L + at.token + fragment_row(0)], w.exit_UL[unit * L + at.token + fragment_row(1)]};
    const float carry = w.entry_UL[unit * L + L - 1];
    __syncthreads();
    multiply_tiles<T, 1, 4, L, L, false, L, false>(u, inverse, v_tile, at.token, at.column);  // R stands there already
    __syncthreads();
    load_inverse(n + 1);
    at.to_tile(u[0], exit, v_tile);
    at.emit_tokens(w, u[0], w.writes_ULV + unit * L * w.V);
    at.scale(acc, carry);
    __syncthreads();
    multiply_tiles<T, MT, 4, L, KP, true, L, false>(acc, k_tile, v_tile, at.key, at.column);
    __syncthreads();
    load_inputs(n + 1);
  }
  at.write_state(w, w.cell_BHKV, acc);
}

// From the last chunk to the first, dC the gradient of the state that leaves it:
//   R = P^T dh + x k dC,  z = (I + A)^-T R,  dC <- e_L dC + q^T (e dh) - k^T (beta e z).
template <typename T, int KP>
__global__ void __launch_bounds__(kScanThreads, kScanBlocks<KP>) state_gradients_kernel(Work<T> w) {
  extern __shared__ __align__(128) unsigned char shared[];
  T *q_tile = reinterpret_cast<T*>(shared), *k_tile = q_tile + L * KP, *scores = k_tile + L * KP, *tokens = scores + kTile,
    *cell = tokens + kTile;
  const ScanPlace<T, KP> at(w);
  const int N = w.N;
  const auto unit_of = [&](int n) { return int64_t(at.bh) * N + n; };
  const auto load_keys = [&](T* tile, const T* x_BSHK, int n) {
    if (n >= 0) load_tile<L, KP, kScanThreads>(tile, x_BSHK + w.token(at.bh, n * L) * w.K, int64_t(w.H) * w.K, w.S - n * L, w.K);
    commit_copies();
  };
  const auto load_square = [&](const T* x_ULL, int n) {
    if (n >= 0) load_tile<L, L, kScanThreads>(scores, x_ULL + unit_of(n) * kTile, L, L, L);
    commit_copies();
  };
  const auto load_tokens = [&](int n) {
    if (n >= 0)
      load_tile<L, L, kScanThreads>(tokens, w.grad_h_BSHV + w.token(at.bh, n * L) * w.V + at.v0, int64_t(w.H) * w.V, w.S - n * L,
                                    w.V - at.v0);
    commit_copies();
  };
  load_keys(k_tile, w.k_BSHK, N - 1);
  load_tokens(N - 1);
  load_square(w.scores_ULL, N - 1);
  load_keys(q_tile, w.q_BSHK, N - 1);
  constexpr int MT = ScanPlace<T, KP>::MT;
  float acc[MT][4][4];
  at.read_state(w, w.grad_cell_BHKV, acc);
  for (int n = N - 1; n >= 0; --n) {
    const int64_t unit = unit_of(n);
    float answered[2], exit[2];  // - beta e; x
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int64_t t = unit * L + at.token + fragment_row(part);
      answered[part] = -w.beta_UL[t] * w.entry_UL[t];
      exit[part] = w.exit_UL[t];
    }
    const float carry = w.entry_UL[unit * L + L - 1];
    at.emit_state(w, acc, cell, w.grad_cells_UKV + unit * w.K * w.V);
    wait_copies<0>();
    __syncthreads();
    float z[1][4][4] = {};
    multiply_tiles<T, 1, 4, KP, KP, false, L, false>(z, k_tile, cell, at.token, at.column);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) z[0][j][e] *= exit[e / 2];
    }
    multiply_tiles<T, 1, 4, L, L, true, L, false>(z, scores, tokens, at.token, at.column);
    __syncthreads();
    load_square(w.inverse_ULL, n);
#pragma unroll
    for (int i = 0; i < kTile / 8 / kScanThreads; ++i) {  // dh becomes e dh
      const int piece = threadIdx.x % 8, row = threadIdx.x / 8 + i * (kScanThreads / 8);
      const float entry = w.entry_UL[unit * L + row];
      uint4& place = *reinterpret_cast<uint4*>(tokens + tile_offset<L>(row, piece));
      uint32_t words[4] = {place.x, place.y, place.z, place.w};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float2 pair = unpack(words[c], T{});
        words[c] = pack(entry * pair.x, entry * pair.y, T{});
      }
      place = make_uint4(words[0], words[1], words[2], words[3]);
    }
    at.scale(acc, carry);
    __syncthreads();
    multiply_tiles<T, MT, 4, L, KP, true, L, false>(acc, q_tile, tokens, at.key, at.column);
    wait_copies<0>();
    __syncthreads();
    load_keys(q_tile, w.q_BSHK, n - 1);
    constexpr float kOnes[2] = {1.0f, 1.0f};
    at.to_tile(z[0], kOnes, tokens);
    __syncthreads();
    multiply_tiles<T, 1, 4, L, L, true, L, false>(z, scores, tokens, at.token, at.column);  // R stands there already
    __syncthreads();
    load_square(w.scores_ULL, n - 1);
    at.to_tile(z[0], answered, tokens);
    at.emit_tokens(w, z[0], w.grad_writes_ULV + unit * L * w.V);
    __syncthreads();
    multiply_tiles<T, MT, 4, L, KP, true, L, false>(acc, k_tile, tokens, at.key, at.column);
    __syncthreads();
    load_keys(k_tile, w.k_BSHK, n - 1);
    load_tokens(n - 1);
  }
  at.write_state(w, w.grad_initial_cell_BHKV, acc);
}

}  // namespace
}  // namespace distil_xlstm::kernels::cuda
