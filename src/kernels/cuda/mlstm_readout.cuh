// h, dq, dk and dv from states and score tiles, and the gates' gradients.
#pragma once

#include "kernels/cuda/mlstm_work.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

// One product of the form that h, dq, dk and dv share, 64 tokens by NT columns from column n0 on, for one unit:
//   out = row_weight ((x Z) + pull vector) + A y      x [64][depth] tokens, Z a state, A a score tile, y [64][columns] tokens
template <typename T>
struct ReadOut {
  const T *x, *state, *scores, *y;  // first row, column 0
  int x_width, y_width;
  const float *row_weight, *pull, *vector;  // pull or vector may be null: 1, 0
  T* out;                                   // as y
  const T* own;                             // as y, for the dots out . own; or null
  float* dots;
};

// kStateColumns: Z is the state transposed, its rows being the product's columns. kScoresTransposed: A is the tile transposed.
template <typename T, int NT, bool kStateColumns, bool kScoresTransposed, bool kDots>
__device__ void read_out(const Work<T>& w, const ReadOut<T>& r, int n0, int rows, T* tiles, float (&sums)[2][L]) {
  constexpr int kStage = kTile + L * NT, NF = NT / 16;
  const int warp = threadIdx.x / 32, lane = threadIdx.x & 31, m = warp / 2 * 32, nw = warp % 2 * (NT / 2);
  const int state_steps = (r.x_width + L - 1) / L, steps = state_steps + 1 + (kDots ? 1 : 0);
  const auto load = [&](int i) {
    T *a = tiles + i % kStages * kStage, *b = a + kTile;
    const int64_t y_stride = int64_t(w.H) * r.y_width;
    if (i < state_steps) {
      const int at = i * L;
      load_tile<L, L, kTileThreads>(a, r.x + at, int64_t(w.H) * r.x_width, rows, r.x_width - at);
      if constexpr (kStateColumns) {
        load_tile<NT, L, kTileThreads>(b, r.state + int64_t(n0) * w.V + at, w.V, w.K - n0, w.V - at);
      } else {
        load_tile<L, NT, kTileThreads>(b, r.state + int64_t(at) * w.V + n0, w.V, w.K - at, w.V - n0);
      }
    } else if (i == state_steps) {
      load_tile<L, L, kTileThreads>(a, r.scores, L, L, L);
      load_tile<L, NT, kTileThreads>(b, r.y + n0, y_stride, rows, r.y_width - n0);
    } else if (kDots && i < steps) {
      load_tile<L, NT, kTileThreads>(b, r.own + n0, y_stride, rows, r.y_width - n0);
    }
    commit_copies();
  };
  load(0);
  load(1);
  float acc[2][NF][4] = {};
  for (int i = 0; i < state_steps; ++i) {
    wait_copies<1>();
    __syncthreads();
    load(i + 2);
    const T *a = tiles + i % kStages * kStage, *b = a + kTile;
    multiply_tiles<T, 2, NF, L, L, false, kStateColumns ? L : NT, kStateColumns>(acc, a, b, m, nw);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int t = m + i * 16 + part * 8 + lane / 4;
      const float weight = r.row_weight[t], pull = r.pull ? r.pull[t] : 1.0f;
#pragma unroll
      for (int j = 0; j < NF; ++j) {
        const int col = n0 + nw + j * 8 + lane % 4 * 2;
        const float2 vector = kStateColumns && col < w.Kp ? *reinterpret_cast<const float2*>(r.vector + col) : make_float2(0.0f, 0.0f);
        acc[i][j][part * 2] = weight * (acc[i][j][part * 2] + pull * vector.x);
        acc[i][j][part * 2 + 1] = weight * (acc[i][j][part * 2 + 1] + pull * vector.y);
      }
    }
  }
  wait_copies<1>();
  __syncthreads();
  {
    const T *a = tiles + state_steps % kStages * kStage, *b = a + kTile;
    multiply_tiles<T, 2, NF, L, L, kScoresTransposed, NT, false>(acc, a, b, m, nw);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int t = m + i * 16 + part * 8 + lane / 4;
      T* out = r.out + t * (int64_t(w.H) * r.y_width);
#pragma unroll
      for (int j = 0; j < NF; j += 2) {
        const int col = n0 + nw + j * 8 + gathered_column();
        const uint2 words = gather_four(pack(acc[i][j][part * 2], acc[i][j][part * 2 + 1], T{}),
                                        pack(acc[i][j + 1][part * 2], acc[i][j + 1][part * 2 + 1], T{}));
        if (t < rows && col < r.y_width) *reinterpret_cast<uint2*>(out + col) = words;
      }
    }
  }
  if constexpr (kDots) {
    wait_copies<0>();
    __syncthreads();
    const T* own = tiles + (steps - 1) % kStages * kStage + kTile;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int t = m + i * 16 + part * 8 + lane / 4;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < NF; ++j) {
          const float2 x = unpack(*reinterpret_cast<const uint32_t*>(own + tile_offset<NT>(t, nw / 8 + j) + lane % 4 * 2), T{});
          sum += x.x * acc[i][j][part * 2] + x.y * acc[i][j][part * 2 + 1];
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane % 4 == 0) sums[warp % 2][t] = sum;
      }
    }
    __syncthreads();
    if (threadIdx.x < L) r.dots[threadIdx.x] = sums[0][threadIdx.x] + sums[1][threadIdx.x];
  }
}

// h = (S-bar / N) v + (entry / N) q C
template <typename T, int NT>
__global__ void __launch_bounds__(kTileThreads, 3) output_kernel(Work<T> w) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float sums[2][L];
  const int tiles = (w.V + NT - 1) / NT, tile = blockIdx.x % tiles;
  const int64_t unit = blockIdx.x / tiles;
  const int bh = int(unit / w.N), n = int(unit % w.N);
  const int64_t token = w.token(bh, n * L), border = int64_t(bh) * (w.N + 1) + n;
  ReadOut<T> r{};
  r.x = w.q_BSHK + token * w.K;
  r.x_width = w.K;
  r.state = w.cell_BHMKV + border * w.K * w.V;
  r.scores = w.scores_ULL + unit * kTile;
  r.y = w.v_BSHV + token * w.V;
  r.y_width = w.V;
  r.row_weight = w.read_UL + unit * L;
  r.out = w.h_BSHV + token * w.V;
  read_out<T, NT, false, false, false>(w, r, tile * NT, w.length - n * L, reinterpret_cast<T*>(shared), sums);
}

// dq = P k + (entry / N)(dh C^T + pull n),   dk = P^T q + exit (v dC^T + dn)
template <typename T, int NT>
__global__ void __launch_bounds__(kTileThreads, 3) key_gradients_kernel(Work<T> w) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float sums[2][L];
  T* buffer = reinterpret_cast<T*>(shared);
  const int key_tiles = w.key_tiles, tile = blockIdx.x % (2 * key_tiles), at = tile % key_tiles;
  const int64_t unit = blockIdx.x / (2 * key_tiles), units = int64_t(w.B) * w.H * w.N;
  const int bh = int(unit / w.N), n = int(unit % w.N), rows = w.length - n * L;
  const int64_t token = w.token(bh, n * L), border = int64_t(bh) * (w.N + 1) + n, key = token * w.K, value = token * w.V;
  const bool of_query = tile < key_tiles;
  ReadOut<T> r{};
  r.x_width = w.V;
  r.y_width = w.K;
  r.scores = w.grad_scores_ULL + unit * kTile;
  r.dots = (of_query ? w.q_dots_XUL : w.k_dots_XUL) + (at * units + unit) * L;
  if (of_query) {
    r.x = w.grad_h_BSHV + value;
    r.state = w.cell_BHMKV + border * w.K * w.V;
    r.y = w.k_BSHK + key;
    r.row_weight = w.read_UL + unit * L;
    r.pull = w.pull_UL + unit * L;
    r.vector = w.normalizer_BHMK + border * w.Kp;
    r.out = w.grad_q_BSHK + key;
    r.own = w.q_BSHK + key;
    read_out<T, NT, true, false, true>(w, r, at * NT, rows, buffer, sums);
  } else {
    r.x = w.v_BSHV + value;
    r.state = w.grad_cell_UKV + unit * w.K * w.V;
    r.y = w.q_BSHK + key;
    r.row_weight = w.exit_UL + unit * L;
    r.vector = w.grad_normalizer_UK + unit * w.Kp;
    r.out = w.grad_k_BSHK + key;
    r.own = w.k_BSHK + key;
    read_out<T, NT, true, true, true>(w, r, at * NT, rows, buffer, sums);
  }
}

// dv = (S-bar / N)^T dh + exit k dC
template <typename T, int NT>
__global__ void __launch_bounds__(kTileThreads, 3) value_gradients_kernel(Work<T> w) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float sums[2][L];
  const int tiles = (w.V + NT - 1) / NT, tile = blockIdx.x % tiles;
  const int64_t unit = blockIdx.x / tiles;
  const int bh = int(unit / w.N), n = int(unit % w.N);
  const int64_t token = w.token(bh, n * L);
  ReadOut<T> r{};
  r.x = w.k_BSHK + token * w.K;
  r.x_width = w.K;
  r.state = w.grad_cell_UKV + unit * w.K * w.V;
  r.scores = w.scores_ULL + unit * kTile;
  r.y = w.grad_h_BSHV + token * w.V;
  r.y_width = w.V;
  r.row_weight = w.exit_UL + unit * L;
  r.out = w.grad_v_BSHV + token * w.V;
  read_out<T, NT, false, true, false>(w, r, tile * NT, w.length - n * L, reinterpret_cast<T*>(shared), sums);
}

// di = k . dk; df = sigmoid(-f) (what later tokens and the state that leaves the chunk get from tokens before this one). A warp a chunk.
template <typename T>
__global__ void gate_gradients_kernel(Work<T> w) {
  const int64_t units = int64_t(w.B) * w.H * w.N, unit = int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (unit >= units) return;
  const int lane = threadIdx.x & 31, bh = int(unit / w.N), n = int(unit % w.N);
  const auto leaving_at = [&](int border) {
    float sum = 0.0f;
    for (int x = 0; x < w.state_tiles; ++x) sum += w.leaving_BHMX[(int64_t(bh) * (w.N + 1) + border) * w.state_tiles + x];
    return sum;
  };
  float row[2] = {}, digate[2] = {}, leaving = 0.0f;
  int document[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t at = unit * L + 2 * lane + i;
    for (int x = 0; x < w.key_tiles; ++x) {
      row[i] += w.q_dots_XUL[x * units * L + at];
      digate[i] += w.k_dots_XUL[x * units * L + at];
    }
    row[i] -= digate[i];
    document[i] = w.document_UL[at];
  }
  leaving = leaving_at(n + 1);
  if (n == 0 && lane == 0 && w.grad_initial_stabilizer_BH) w.grad_initial_stabilizer_BH[bh] = leaving_at(0);
  // Sums from a token to the last of its document in the chunk: a segmented scan from the right.
  const int last = __shfl_sync(~0u, document[1], 31);
  float later = document[0] == document[1] ? row[0] + row[1] : row[0];  // of this lane's first document
  int until = document[1];                                              // the scanned span's last document
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float next = __shfl_down_sync(~0u, later, d);
    const int next_until = __shfl_down_sync(~0u, until, d), next_document = __shfl_down_sync(~0u, document[0], d);
    if (lane + d < 32) {
      if (until == document[0] && next_document == document[0]) later += next;
      until = next_until;
    }
  }
  const float beyond = __shfl_down_sync(~0u, later, 1);
  const int beyond_document = __shfl_down_sync(~0u, document[0], 1);
  const float second = row[1] + (lane < 31 && beyond_document == document[1] ? beyond : 0.0f);
  const float sums[2] = {later, second};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = n * L + 2 * lane + i;
    if (t >= w.length) continue;
    const int64_t token = w.token(bh, t);
    const bool starts = w.is_start_BS && w.is_start_BS[int64_t(bh / w.H) * w.S + w.first + t];
    w.grad_igate_BSH[token] = digate[i];
    w.grad_fgate_BSH[token] = starts ? 0.0f : (sums[i] + (document[i] == last ? leaving : 0.0f)) * sigmoid(-w.fgate_BSH[token]);
  }
}

}  // namespace
}  // namespace distil_xlstm::kernels::cuda
