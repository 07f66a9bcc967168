// h, and the gradients of q, k, v and the gates, from what the scans left.
#pragma once

#include "kernels/cuda/delta_rule_scores.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kOutputStages = 3;

// h = e q C + P u, 64 columns of a unit.
template <typename T>
__global__ void __launch_bounds__(kTileThreads, 4) output_kernel(Work<T> w) {
  extern __shared__ __align__(128) unsigned char shared[];
  T* tiles = reinterpret_cast<T*>(shared);
  const int v_tiles = (w.V + L - 1) / L, v0 = blockIdx.x % v_tiles * L;
  const int64_t unit = blockIdx.x / v_tiles;
  const int bh = int(unit / w.N), n = int(unit % w.N), rows = w.S - n * L;
  const int warp = threadIdx.x / 32, m = warp / 2 * 32, column = warp % 2 * 32, steps = (w.K + L - 1) / L;
  const int64_t token = w.token(bh, n * L);
  const auto load = [&](int i) {
    T *a = tiles + i % kOutputStages * 2 * kTile, *b = a + kTile;
    if (i < steps) {
      load_tile<L, L, kTileThreads>(a, w.q_BSHK + token * w.K + i * L, int64_t(w.H) * w.K, rows, w.K - i * L);
      load_tile<L, L, kTileThreads>(b, w.cells_UKV + (unit * w.K + i * L) * w.V + v0, w.V, w.K - i * L, w.V - v0);
    } else if (i == steps) {
      load_tile<L, L, kTileThreads>(a, w.scores_ULL + unit * kTile, L, L, L);
      load_tile<L, L, kTileThreads>(b, w.writes_ULV + unit * L * w.V + v0, w.V, L, w.V - v0);
    }
    commit_copies();
  };
  load(0);
  load(1);
  float acc[2][4][4] = {};
  for (int i = 0; i <= steps; ++i) {
    wait_copies<1>();
    __syncthreads();
    load(i + 2);
    if (i == steps) {
#pragma unroll
      for (int a = 0; a < 2; ++a) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const float entry = w.entry_UL[unit * L + m + a * 16 + fragment_row(part)];
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            acc[a][j][part * 2] *= entry;
            acc[a][j][part * 2 + 1] *= entry;
          }
        }
      }
    }
    const T* a = tiles + i % kOutputStages * 2 * kTile;
    multiply_tiles<T, 2, 4, L, L, false, L, false>(acc, a, a + kTile, m, column);
  }
#pragma unroll
  for (int a = 0; a < 2; ++a) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int t = m + a * 16 + fragment_row(part);
      store_row<T, 4>(w.h_BSHV + (token + int64_t(t) * w.H) * w.V + v0, acc[a], part, column, t < rows ? w.V - v0 : 0);
    }
  }
}

// Of one unit, VP value columns (zeros beyond V). Key columns come 64 at a time, in stages of q, k, C and dC.
template <int VP>
constexpr int kGradientStages = VP == 64 ? 2 : 1;
template <int VP>
constexpr int kGradientTiles = 3 * L * VP + 2 * kTile + kGradientStages<VP> * (2 * kTile + 2 * L * VP);

struct GradientShared {
  ChunkGates gates;
  float query_dots[2][L], value_dots[L], rows[L], state_sums[kScanThreads / 32];
};

// P' = D dh u^T and -(R + R^T), R = beta D z u^T below the diagonal. Warp i has 16 rows from i / 2 and 32 columns from i % 2 on.
template <typename T, int VP>
__device__ inline void pair_tokens(const ChunkGates& g, const T* grad_h, const T* writes, const T* grad_writes, int m, int column,
                                   T* read_p, T* write_r) {
  float p[4][4] = {}, r[4][4] = {};
  multiply_two<T, 4, VP, VP, VP, true>(p, r, grad_h, grad_writes, writes, m, column);
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int t = m + fragment_row(part);
    const float beta = g.beta[t];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      float read[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int j = column + c * 8 + fragment_column() + e;
        const float decay = decay_between(g, t, j);
        read[e] = decay * p[c][part * 2 + e];
        if (j > t) continue;
        const auto both = uint16_t(pack(j < t ? -beta * decay * r[c][part * 2 + e] : 0.0f, 0.0f, T{}));
        *reinterpret_cast<uint16_t*>(write_r + tile_offset<L>(t, j >> 3) + (j & 7)) = both;
        *reinterpret_cast<uint16_t*>(write_r + tile_offset<L>(j, t >> 3) + (t & 7)) = both;
      }
      tile_word<L>(read_p, t, column + c * 8) = pack(read[0], read[1], T{});
    }
  }
}

// dv = beta z, the gradient of the input gate, and v . dv of each token; 4 threads a token.
template <typename T, int VP>
__device__ inline void differentiate_values(const Work<T>& w, const ChunkGates& g, int64_t first, int rows, const T* writes,
                                            const T* grad_writes, float* value_dots) {
  const int t = threadIdx.x / 4;
  const int64_t token = first + int64_t(t) * w.H;
  float own = 0.0f, written = 0.0f;
#pragma unroll
  for (int piece = threadIdx.x % 4; piece < VP / 8; piece += 4) {
    if (t >= rows || piece * 8 >= w.V) continue;
    const uint4 zs = *reinterpret_cast<const uint4*>(grad_writes + tile_offset<VP>(t, piece));
    const uint4 us = *reinterpret_cast<const uint4*>(writes + tile_offset<VP>(t, piece));
    const uint4 vs = *reinterpret_cast<const uint4*>(w.v_BSHV + token * w.V + piece * 8);
    const uint32_t z_words[4] = {zs.x, zs.y, zs.z, zs.w}, u_words[4] = {us.x, us.y, us.z, us.w}, v_words[4] = {vs.x, vs.y, vs.z, vs.w};
    uint32_t out[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 z = unpack(z_words[i], T{}), u = unpack(u_words[i], T{}), v = unpack(v_words[i], T{});
      const float2 dv = make_float2(g.beta[t] * z.x, g.beta[t] * z.y);
      own += v.x * dv.x + v.y * dv.y;
      written += z.x * u.x + z.y * u.y;
      out[i] = pack(dv.x, dv.y, T{});
    }
    *reinterpret_cast<uint4*>(w.grad_v_BSHV + token * w.V + piece * 8) = make_uint4(out[0], out[1], out[2], out[3]);
  }
#pragma unroll
  for (int lanes = 1; lanes < 4; lanes *= 2) {
    own += __shfl_xor_sync(~0u, own, lanes);
    written += __shfl_xor_sync(~0u, written, lanes);
  }
  if (threadIdx.x % 4 != 0) return;
  value_dots[t] = own;
  if (t < rows) w.grad_igate_BSH[token] = written * sigmoid(-w.igate_BSH[token]);
}

// df of the unit's tokens; `leaving`: <dC, C> at the chunk's end.
template <typename T>
__device__ inline void differentiate_forget_gates(const Work<T>& w, const ChunkGates& g, int64_t first, int rows, const float* row_sums,
                                                  float leaving) {
  const int t = threadIdx.x;
  if (t >= rows) return;
  float sum = g.document[t] == g.document[L - 1] ? leaving : 0.0f;
  for (int later = rows - 1; later >= t; --later) sum += g.document[later] == g.document[t] ? row_sums[later] : 0.0f;
  const bool starts = g.document[t] != (t == 0 ? 0 : g.document[t - 1]);
  const int64_t token = first + int64_t(t) * w.H;
  w.grad_fgate_BSH[token] = starts ? 0.0f : sum * sigmoid(-w.fgate_BSH[token]);
}

// dq = e dh C^T + P' k
// dk = x u dC^T - beta e z C^T + P'^T q - (R + R^T) k
template <typename T, int VP>
__global__ void __launch_bounds__(kScanThreads, 2) input_gradients_kernel(Work<T> w) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ GradientShared own;
  constexpr int kStages = kGradientStages<VP>, kStage = 2 * kTile + 2 * L * VP;
  T *grad_h = reinterpret_cast<T*>(shared), *writes = grad_h + L * VP, *grad_writes = writes + L * VP, *read_p = grad_writes + L * VP,
    *write_r = read_p + kTile, *stages = write_r + kTile;
  const int64_t unit = blockIdx.x;
  const int bh = int(unit / w.N), n = int(unit % w.N), rows = min(w.S - n * L, L), steps = (w.K + L - 1) / L;
  const int warp = threadIdx.x / 32, m = warp / 2 * 16, column = warp % 2 * 32;
  const int64_t token = w.token(bh, n * L);
  load_tile<L, VP, kScanThreads>(grad_h, w.grad_h_BSHV + token * w.V, int64_t(w.H) * w.V, rows, w.V);
  load_tile<L, VP, kScanThreads>(writes, w.writes_ULV + unit * L * w.V, w.V, L, w.V);
  load_tile<L, VP, kScanThreads>(grad_writes, w.grad_writes_ULV + unit * L * w.V, w.V, L, w.V);
  commit_copies();
  const auto load = [&](int i) {
    if (i < steps) {
      T* stage = stages + i % kStages * kStage;
      const int64_t keys = token * w.K + i * L, cells = (unit * w.K + i * L) * w.V;
      load_tile<L, L, kScanThreads>(stage, w.q_BSHK + keys, int64_t(w.H) * w.K, rows, w.K - i * L);
      load_tile<L, L, kScanThreads>(stage + kTile, w.k_BSHK + keys, int64_t(w.H) * w.K, rows, w.K - i * L);
      load_tile<L, VP, kScanThreads>(stage + 2 * kTile, w.cells_UKV + cells, w.V, w.K - i * L, w.V);
      load_tile<L, VP, kScanThreads>(stage + 2 * kTile + L * VP, w.grad_cells_UKV + cells, w.V, w.K - i * L, w.V);
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < kStages; ++i) load(i);
  if (threadIdx.x < L) {
    const int t = threadIdx.x;
    own.gates.beta[t] = w.beta_UL[unit * L + t];
    own.gates.entry[t] = w.entry_UL[unit * L + t];
    own.gates.exit[t] = w.exit_UL[unit * L + t];
    own.gates.decay[t] = w.decay_UL[unit * L + t];
    own.gates.rest[t] = w.rest_UL[unit * L + t];
    own.gates.document[t] = w.document_UL[unit * L + t];
  }
  wait_copies<kStages>();
  __syncthreads();
  pair_tokens<T, VP>(own.gates, grad_h, writes, grad_writes, m, column, read_p, write_r);
  differentiate_values<T, VP>(w, own.gates, token, rows, writes, grad_writes, own.value_dots);

  float entry[2], beta[2], exit[2], query_dots[2] = {}, state_sum = 0.0f;  // state_sum: this thread's part of <dC, C> at the chunk's end
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    entry[part] = own.gates.entry[m + fragment_row(part)];
    beta[part] = own.gates.beta[m + fragment_row(part)];
    exit[part] = own.gates.exit[m + fragment_row(part)];
  }
  for (int i = 0; i < steps; ++i) {
    wait_copies<kStages - 1>();
    __syncthreads();
    const T *q = stages + i % kStages * kStage, *k = q + kTile, *cells = k + kTile, *grad_cells = cells + L * VP;
    float kept = 0.0f;  // of the state that came in
#pragma unroll
    for (int p = 0; p < VP / 32; ++p) {
      const int at = (threadIdx.x + p * kScanThreads) * 8;
      const uint4 x = *reinterpret_cast<const uint4*>(cells + at), y = *reinterpret_cast<const uint4*>(grad_cells + at);
      const uint32_t x_words[4] = {x.x, x.y, x.z, x.w}, y_words[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float2 a = unpack(x_words[c], T{}), b = unpack(y_words[c], T{});
        kept += a.x * b.x + a.y * b.y;
      }
    }
    state_sum += own.gates.entry[L - 1] * kept;
    float dq[4][4] = {}, dk[1][4][4] = {}, written[1][4][4] = {};
    multiply_two<T, 4, VP, VP, VP, true>(dq, dk[0], grad_h, grad_writes, cells, m, column);
    multiply_tiles<T, 1, 4, VP, VP, false, VP, true>(written, writes, grad_cells, m, column);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int t = m + fragment_row(part);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 key = tile_pair<L>(k, t, column + j * 8);
        const float left = exit[part] * written[0][j][part * 2], right = exit[part] * written[0][j][part * 2 + 1];
        state_sum += key.x * left + key.y * right;
        dq[j][part * 2] *= entry[part];
        dq[j][part * 2 + 1] *= entry[part];
        dk[0][j][part * 2] = left - beta[part] * entry[part] * dk[0][j][part * 2];
        dk[0][j][part * 2 + 1] = right - beta[part] * entry[part] * dk[0][j][part * 2 + 1];
      }
    }
    multiply_two<T, 4, L, L, L, false>(dq, dk[0], read_p, write_r, k, m, column);
    multiply_tiles<T, 1, 4, L, L, true, L, false>(dk, read_p, q, m, column);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int t = m + fragment_row(part);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 query = tile_pair<L>(q, t, column + j * 8);
        query_dots[part] += query.x * dq[j][part * 2] + query.y * dq[j][part * 2 + 1];
      }
      const int64_t to = (token + int64_t(t) * w.H) * w.K + i * L;
      const int width = t < rows ? w.K - i * L : 0;
      store_row<T, 4>(w.grad_q_BSHK + to, dq, part, column, width);
      store_row<T, 4>(w.grad_k_BSHK + to, dk[0], part, column, width);
    }
    __syncthreads();
    load(i + kStages);
  }

#pragma unroll
  for (int part = 0; part < 2; ++part) {
    query_dots[part] += __shfl_xor_sync(~0u, query_dots[part], 1);
    query_dots[part] += __shfl_xor_sync(~0u, query_dots[part], 2);
    if (threadIdx.x % 4 == 0) own.query_dots[warp % 2][m + fragment_row(part)] = query_dots[part];
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) state_sum += __shfl_xor_sync(~0u, state_sum, lanes);
  if (threadIdx.x % 32 == 0) own.state_sums[warp] = state_sum;
  __syncthreads();
  if (threadIdx.x < L) {
    const int t = threadIdx.x;
    own.rows[t] = own.query_dots[0][t] + own.query_dots[1][t] - own.value_dots[t];
  }
  __syncthreads();
  float leaving = 0.0f;
#pragma unroll
  for (int i = 0; i < kScanThreads / 32; ++i) leaving += own.state_sums[i];
  differentiate_forget_gates(w, own.gates, token, rows, own.rows, leaving);
}

}  // namespace
}  // namespace distil_xlstm::kernels::cuda
