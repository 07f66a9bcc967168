#include "kernels/cuda/mlstm_chunkwise.h"

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/mma_tile.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int L = kMlstmChunk;
constexpr int kTile = L * L;  // elements of a tile of 64 tokens and 64 columns
constexpr int kStages = 3;    // tiles in flight
constexpr float kEps = 1e-6f, kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kMinFrame = -10.0f * kLog2E;  // exp(-frame) must stay finite; any frame gives the same output
constexpr int kScanThreads = 256, kTileThreads = 128;

__device__ constexpr float none() {
  return -__builtin_inff();
}

// What the kernels of one segment share. All exponents are to base 2. N chunks; tokens are counted from the segment's first.
// U: units, one chunk of one head of one row, in the order [B][H][N]; M = N + 1 borders of chunks.
template <typename T>
struct Work {
  int B, S, H, K, V;           // of the tensors; K and V whole 16-byte pieces
  int cell_K, cell_V;          // of the states that come in and go out
  int first, length, N;        // of the segment: its first token, number of tokens and chunks
  int Kp;                      // width of the stored normalizers: K in whole tiles
  int state_tiles, key_tiles;  // partial sums of leaving, of the dots
  float scale;                 // 1 / sqrt(K)
  bool plain_sum, stores_cells;
  const T *q_BSHK, *k_BSHK, *v_BSHV, *read_h_BSHV, *grad_h_BSHV;
  const float *igate_BSH, *fgate_BSH;
  const uint8_t* is_start_BS;
  const float *initial_cell_BHKV, *initial_normalizer_BHK, *initial_stabilizer_BH;
  float *cell_BHKV, *normalizer_BHK, *stabilizer_BH;                                         // final; or null
  const float *grad_cell_BHKV, *grad_normalizer_BHK;                                         // of the final state; or null
  float *grad_initial_cell_BHKV, *grad_initial_normalizer_BHK, *grad_initial_stabilizer_BH;  // or null
  T *h_BSHV, *grad_q_BSHK, *grad_k_BSHK, *grad_v_BSHV;
  float *grad_igate_BSH, *grad_fgate_BSH;

  // Per token: log decay from the chunk's start in two floats (hi alone; lo minus the frame; input gate minus lo), weight of the entering
  // state, weight in the leaving one (with the scale), least divisor, document counted in the chunk.
  float *decay_UL, *row_shift_UL, *col_shift_UL, *entry_UL, *exit_UL, *bound_UL;
  int* document_UL;
  float *read_UL, *pull_UL;  // entry / divisor; gradient of the denominator times the divisor, that is -sign (dh . h) where |r| rules
  float *carry_U, *stabilizer_BHM;
  T *cell_BHMKV, *grad_cell_UKV;  // grad_cell: at the chunk's end
  float *normalizer_BHMK, *grad_normalizer_UK;
  T *scores_ULL, *grad_scores_ULL;                // S-bar / divisor; scale (dh . v - rho) D
  float *leaving_BHMX, *q_dots_XUL, *k_dots_XUL;  // partial sums: <C, dC>, q . dq, k . dk

  __device__ int64_t token(int bh, int t) const {  // index into [B S H] of token t of the segment
    return (int64_t(bh / H) * S + first + t) * H + bh % H;
  }
};

// ---- gates
// -------------------------------------------------------------------------------------------------------------------------------

__device__ inline float log2_sigmoid(float x) {
  return kLog2E * (fminf(x, 0.0f) - log1pf(expf(-fabsf(x))));
}

// Stabilizers over tokens: m -> max(sum + m, top). sum is -inf where a document starts within.
struct Rise {
  float sum, top;
};
__device__ inline Rise then(Rise a, Rise b) {
  return {a.sum + b.sum, fmaxf(a.top + b.sum, b.top)};
}
__device__ inline Rise inclusive_scan(Rise x) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const Rise before{__shfl_up_sync(~0u, x.sum, d), __shfl_up_sync(~0u, x.top, d)};
    if (lane >= d) x = then(before, x);
  }
  return x;
}

// A warp reads one chunk; lane l has tokens 2 l and 2 l + 1.
struct LaneGates {
  float log_forget[2], igate[2];
  bool starts[2];
  Rise rise[2];
};
template <typename T>
__device__ LaneGates load_gates(const Work<T>& w, int bh, int n) {
  const int lane = threadIdx.x & 31;
  LaneGates g;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = n * L + 2 * lane + i;
    const bool present = t < w.length;
    g.log_forget[i] = present ? fmaxf(log2_sigmoid(w.fgate_BSH[w.token(bh, t)]), -1e6f) : 0.0f;
    g.igate[i] = present ? kLog2E * w.igate_BSH[w.token(bh, t)] : none();
    g.starts[i] = present && w.is_start_BS && w.is_start_BS[int64_t(bh / w.H) * w.S + w.first + t];
    const float empty = w.plain_sum ? kMlstmEmptyStabilizer : 0.0f;
    g.rise[i] = g.starts[i] ? Rise{none(), fmaxf(g.log_forget[i] + empty, g.igate[i])} : Rise{g.log_forget[i], g.igate[i]};
  }
  return g;
}

template <typename T>
__device__ void weigh_tokens(const Work<T>& w, int bh, int n) {
  const int lane = threadIdx.x & 31;
  const LaneGates g = load_gates(w, bh, n);
  const float m_before = w.stabilizer_BHM[int64_t(bh) * (w.N + 1) + n], m_after = w.stabilizer_BHM[int64_t(bh) * (w.N + 1) + n + 1];
  const Rise both = inclusive_scan(then(g.rise[0], g.rise[1]));
  const Rise before{__shfl_up_sync(~0u, both.sum, 1), __shfl_up_sync(~0u, both.top, 1)};
  const Rise here[2] = {lane == 0 ? g.rise[0] : then(before, g.rise[0]), both};
  double decay = double(g.log_forget[0]) + double(g.log_forget[1]);  // double: differences of these sums must keep their digits
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const double earlier = __shfl_up_sync(~0u, decay, d);
    if (lane >= d) decay += earlier;
  }
  const double all = __shfl_sync(~0u, decay, 31), decays[2] = {decay - double(g.log_forget[1]), decay};
  const uint32_t starts0 = __ballot_sync(~0u, g.starts[0]), starts1 = __ballot_sync(~0u, g.starts[1]), below = (1u << lane) - 1;
  const int documents[2] = {__popc(starts0 & (below | (1u << lane))) + __popc(starts1 & below),
                            __popc(starts0 & (below | (1u << lane))) + __popc(starts1 & (below | (1u << lane)))};
  const int last = __popc(starts0) + __popc(starts1);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t at = (int64_t(bh) * w.N + n) * L + 2 * lane + i;
    const float m = fmaxf(here[i].sum + m_before, here[i].top), frame = w.plain_sum ? m : fmaxf(m, kMinFrame);
    const float hi = float(decays[i]), lo = float(decays[i] - double(hi));
    w.decay_UL[at] = hi;
    w.row_shift_UL[at] = lo - frame;
    w.col_shift_UL[at] = g.igate[i] - lo;
    w.entry_UL[at] = exp2f(here[i].sum + m_before - frame);
    w.exit_UL[at] = documents[i] == last ? w.scale * exp2f(float(all - decays[i]) + g.igate[i] - m_after) : 0.0f;
    w.bound_UL[at] = w.plain_sum ? kEps : exp2f(-frame);
    w.document_UL[at] = documents[i];
  }
}

// One block a head of a row: stabilizers at the chunks' borders, then everything per token.
template <typename T>
__global__ void __launch_bounds__(1024) gates_kernel(Work<T> w) {
  const int bh = blockIdx.x, warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x & 31;
  float *carry = w.carry_U + int64_t(bh) * w.N, *m = w.stabilizer_BHM + int64_t(bh) * (w.N + 1);
  for (int n = warp; n < w.N; n += warps) {
    const LaneGates g = load_gates(w, bh, n);
    const Rise chunk = inclusive_scan(then(g.rise[0], g.rise[1]));
    if (lane == 31) {
      carry[n] = chunk.sum;
      m[n + 1] = chunk.top;
    }
  }
  __syncthreads();
  if (warp == 0) {
    float border = w.initial_stabilizer_BH ? kLog2E * w.initial_stabilizer_BH[bh] : w.plain_sum ? kMlstmEmptyStabilizer : 0.0f;
    if (lane == 0) m[0] = border;
    for (int n = 0; n < w.N; n += 32) {
      const bool inside = n + lane < w.N;
      const Rise own = inside ? Rise{carry[n + lane], m[n + lane + 1]} : Rise{0.0f, none()};
      const Rise upto = inclusive_scan(own);
      const float after = fmaxf(upto.sum + border, upto.top), previous = __shfl_up_sync(~0u, after, 1);
      if (inside) {
        m[n + lane + 1] = after;
        carry[n + lane] = exp2f(own.sum + (lane == 0 ? border : previous) - after);
      }
      border = __shfl_sync(~0u, after, 31);
    }
    if (lane == 0 && w.stabilizer_BH) w.stabilizer_BH[bh] = kLn2 * border;
  }
  __syncthreads();
  for (int n = warp; n < w.N; n += warps) weigh_tokens(w, bh, n);
}

// ---- states
// ------------------------------------------------------------------------------------------------------------------------------

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

// ---- scores
// ------------------------------------------------------------------------------------------------------------------------------

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

// ---- read-outs
// ---------------------------------------------------------------------------------------------------------------------------

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

// ---- launches
// ----------------------------------------------------------------------------------------------------------------------------

int64_t rounded(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

struct Plan {
  int num_chunks, segment_chunks, num_segments;
};

Plan make_plan(const MlstmInputs& x, bool backward) {
  const int64_t BH = int64_t(x.B) * x.H, cell = rounded(x.K, 8) * rounded(x.V, 8) * 2, unit = (backward ? 2 : 1) * (cell + kTile * 2);
  const int num_chunks = (x.S + L - 1) / L;
  int64_t fit = x.segment_chunks > 0 ? x.segment_chunks : int64_t(kMlstmWorkspaceGoal) / (BH * unit);
  fit = std::clamp<int64_t>(fit, 1, num_chunks);
  const int num_segments = int((num_chunks + fit - 1) / fit);
  return {num_chunks, (num_chunks + num_segments - 1) / num_segments, num_segments};
}

// Hands out pieces of the workspace; counts them when there is none.
struct Arena {
  unsigned char* base;
  size_t used = 0;
  template <typename X>
  void take(X*& pointer, int64_t count) {
    pointer = reinterpret_cast<X*>(base + used);
    used += size_t(rounded(count * int64_t(sizeof(X)), 256));
  }
};

template <typename T>
void take_work(Arena& arena, const MlstmInputs& x, const Plan& plan, bool backward, Work<T>& w) {
  const int64_t BH = int64_t(x.B) * x.H, U = BH * plan.segment_chunks, borders = U + BH;
  for (float** p : {&w.decay_UL, &w.row_shift_UL, &w.col_shift_UL, &w.entry_UL, &w.exit_UL, &w.bound_UL, &w.read_UL, &w.pull_UL})
    arena.take(*p, U * L);
  arena.take(w.document_UL, U * L);
  arena.take(w.carry_U, U);
  arena.take(w.stabilizer_BHM, borders);
  arena.take(w.cell_BHMKV, borders * w.K * w.V);
  arena.take(w.normalizer_BHMK, borders * w.Kp);
  arena.take(w.scores_ULL, U * kTile);
  if (!backward) return;
  arena.take(w.grad_cell_UKV, U * w.K * w.V);
  arena.take(w.grad_normalizer_UK, U * w.Kp);
  arena.take(w.grad_scores_ULL, U * kTile);
  arena.take(w.leaving_BHMX, borders * w.state_tiles);
  arena.take(w.q_dots_XUL, U * L * w.key_tiles);
  arena.take(w.k_dots_XUL, U * L * w.key_tiles);
}

// A recurrent state at a segment's border.
struct Border {
  float *cell, *normalizer, *stabilizer;
};
void take_border(Arena& arena, const MlstmInputs& x, Border& b) {
  const int64_t BH = int64_t(x.B) * x.H;
  arena.take(b.cell, BH * x.K * x.V);
  arena.take(b.normalizer, BH * x.K);
  arena.take(b.stabilizer, BH);
}

// The kernels read and write whole 16-byte pieces. Tensors whose rows are not go through padded copies.
bool is_whole(int width, std::initializer_list<const void*> pointers) {
  uintptr_t bits = uintptr_t(width) * 2;
  for (const void* p : pointers) bits |= reinterpret_cast<uintptr_t>(p);
  return bits % 16 == 0;
}

// to[row][0 .. to_width) = from[row][0 .. from_width), zeros beyond
template <typename T>
__global__ void copy_rows_kernel(const T* from, int from_width, T* to, int to_width, int64_t count) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / to_width;
  const int col = int(i % to_width);
  to[i] = col < from_width ? from[row * from_width + col] : T(0.0f);
}
template <typename T>
cudaError_t copy_rows(const T* from, int from_width, T* to, int to_width, int64_t rows, cudaStream_t stream) {
  const int64_t count = rows * to_width;
  copy_rows_kernel<<<unsigned((count + 255) / 256), 256, 0, stream>>>(from, from_width, to, to_width, count);
  return cudaGetLastError();
}

// Copies of one call's tensors of one width, where they are needed. Copies nothing while the workspace is only counted.
struct Padding {
  Arena& arena;
  int width, padded;
  int64_t rows;
  bool is_used;
  cudaStream_t stream;
  Padding(Arena& arena, const MlstmInputs& x, int width, std::initializer_list<const void*> pointers, cudaStream_t stream)
      : arena(arena),
        width(width),
        padded(int(rounded(width, 8))),
        rows(int64_t(x.B) * x.S * x.H),
        is_used(!is_whole(width, pointers)),
        stream(stream) {}
  template <typename T>
  cudaError_t read(const void* from, const T*& tensor) const {
    tensor = static_cast<const T*>(from);
    if (!is_used) return cudaSuccess;
    T* copy;
    arena.take(copy, rows * padded);
    tensor = copy;
    return arena.base ? copy_rows(static_cast<const T*>(from), width, copy, padded, rows, stream) : cudaSuccess;
  }
  template <typename T>
  void write(void* to, T*& tensor) const {
    tensor = static_cast<T*>(to);
    if (is_used) arena.take(tensor, rows * padded);
  }
  template <typename T>
  cudaError_t written(const T* tensor, void* to) const {
    return is_used ? copy_rows(tensor, padded, static_cast<T*>(to), width, rows, stream) : cudaSuccess;
  }
};

int tile_width(int width) {
  return width <= 64 ? 64 : 128;
}

// The part of C that one block of the scan keeps: the largest that still fills the chip.
struct ScanTile {
  int keys, values;
};
ScanTile scan_tile(const MlstmInputs& x) {
  const int64_t large_blocks = int64_t(x.B) * x.H * ((x.K + 127) / 128) * ((x.V + 63) / 64);
  return {x.K <= 64 || large_blocks < 128 ? 64 : 128, 64};
}

template <typename T>
Work<T> make_work(const MlstmInputs& x) {
  Work<T> w{};
  w.B = x.B;
  w.S = x.S;
  w.H = x.H;
  w.K = int(rounded(x.K, 8));
  w.V = int(rounded(x.V, 8));
  w.cell_K = x.K;
  w.cell_V = x.V;
  w.Kp = int(rounded(x.K, 64));
  const ScanTile tile = scan_tile(x);
  w.state_tiles = ((x.K + tile.keys - 1) / tile.keys) * ((x.V + tile.values - 1) / tile.values);
  w.key_tiles = (x.K + tile_width(x.K) - 1) / tile_width(x.K);
  w.scale = float(1.0 / __builtin_sqrt(double(x.K)));
  w.plain_sum = x.normalizer == MlstmNormalizer::plain_sum;
  w.igate_BSH = x.igate_BSH;
  w.fgate_BSH = x.fgate_BSH;
  w.is_start_BS = x.is_start_BS;
  return w;
}

template <typename T>
void set_segment(const MlstmInputs& x, const Plan& plan, int segment, const Border& initial, Work<T>& w) {
  w.first = segment * plan.segment_chunks * L;
  w.length = std::min(plan.segment_chunks * L, x.S - w.first);
  w.N = (w.length + L - 1) / L;
  w.initial_cell_BHKV = segment == 0 ? x.initial_cell_BHKV : initial.cell;
  w.initial_normalizer_BHK = segment == 0 ? x.initial_normalizer_BHK : initial.normalizer;
  w.initial_stabilizer_BH = segment == 0 ? x.initial_stabilizer_BH : initial.stabilizer;
}

template <typename T>
cudaError_t launch(void (*kernel)(Work<T>), const Work<T>& w, int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream) {
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  if (shared_bytes > 0) {  // with the static part it may pass the default limit
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<unsigned(blocks), threads, shared_bytes, stream>>>(w);
  return cudaGetLastError();
}

template <typename T>
int64_t units(const Work<T>& w) {
  return int64_t(w.B) * w.H * w.N;
}

template <typename T, bool kReverse>
cudaError_t launch_scan(const MlstmInputs& x, const Work<T>& w, cudaStream_t stream) {
  const auto [keys, values] = scan_tile(x);
  const auto kernel = keys == 64 ? scan_kernel<T, 64, 64, kReverse> : scan_kernel<T, 128, 64, kReverse>;
  return launch(kernel, w, int64_t(w.B) * w.H * w.state_tiles, kScanThreads, size_t(kStages * L * (keys + values)) * sizeof(T), stream);
}

template <typename T>
cudaError_t launch_states(const MlstmInputs& x, const Work<T>& w, cudaStream_t stream) {
  const cudaError_t error = launch(gates_kernel<T>, w, int64_t(w.B) * w.H, 32 * std::min(32, w.N), 0, stream);
  return error != cudaSuccess ? error : launch_scan<T, false>(x, w, stream);
}

// Few steps take few stages: more blocks fit.
template <typename T>
size_t scores_bytes(const Work<T>& w, bool backward) {
  const int steps = (w.K + L - 1) / L + (backward ? (w.V + L - 1) / L : 0);
  return size_t(std::min(kStages, steps) * (backward ? 3 : 2) * kTile) * sizeof(T);
}

template <typename T>
size_t read_out_bytes(int columns) {
  return size_t(kStages * L * (L + columns)) * sizeof(T);
}

template <typename T>
cudaError_t launch_output(const Work<T>& w, cudaStream_t stream) {
  const int nt = tile_width(w.V);
  const int64_t blocks = units(w) * ((w.V + nt - 1) / nt);
  return launch(nt == 64 ? output_kernel<T, 64> : output_kernel<T, 128>, w, blocks, kTileThreads, read_out_bytes<T>(nt), stream);
}

template <typename T>
cudaError_t launch_input_gradients(const Work<T>& w, cudaStream_t stream) {
  const int nk = tile_width(w.K), nv = tile_width(w.V);
  const cudaError_t error = launch(nk == 64 ? key_gradients_kernel<T, 64> : key_gradients_kernel<T, 128>, w, units(w) * 2 * w.key_tiles,
                                   kTileThreads, read_out_bytes<T>(nk), stream);
  if (error != cudaSuccess) return error;
  return launch(nv == 64 ? value_gradients_kernel<T, 64> : value_gradients_kernel<T, 128>, w, units(w) * ((w.V + nv - 1) / nv),
                kTileThreads, read_out_bytes<T>(nv), stream);
}

cudaError_t first_error(std::initializer_list<cudaError_t> errors) {
  for (const cudaError_t error : errors) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Without a workspace: launches nothing, counts what is needed.
template <typename T>
cudaError_t forward(const MlstmForward& x, Arena& arena, cudaStream_t stream) {
  const MlstmInputs& in = x.inputs;
  const Plan plan = make_plan(in, false);
  Work<T> w = make_work<T>(in);
  take_work(arena, in, plan, false, w);
  const Padding keys(arena, in, in.K, {in.q_BSHK, in.k_BSHK}, stream), values(arena, in, in.V, {in.v_BSHV, x.h_BSHV}, stream);
  cudaError_t error = first_error({keys.read(in.q_BSHK, w.q_BSHK), keys.read(in.k_BSHK, w.k_BSHK), values.read(in.v_BSHV, w.v_BSHV)});
  values.write(x.h_BSHV, w.h_BSHV);
  if (!arena.base || error != cudaSuccess) return error;
  w.cell_BHKV = x.cell_BHKV;
  w.normalizer_BHK = x.normalizer_BHK;
  w.stabilizer_BH = x.stabilizer_BH;
  w.stores_cells = true;
  for (int segment = 0; segment < plan.num_segments; ++segment) {
    set_segment(in, plan, segment, {x.cell_BHKV, x.normalizer_BHK, x.stabilizer_BH}, w);
    error = launch_states(in, w, stream);
    if (error == cudaSuccess) error = launch(scores_kernel<T, false>, w, units(w), kTileThreads, scores_bytes(w, false), stream);
    if (error == cudaSuccess) error = launch_output(w, stream);
    if (error != cudaSuccess) return error;
  }
  return values.written(w.h_BSHV, x.h_BSHV);
}

template <typename T>
cudaError_t backward_segment(const MlstmInputs& x, const Work<T>& w, cudaStream_t stream) {
  cudaError_t error = launch_states(x, w, stream);
  if (error == cudaSuccess) error = launch(scores_kernel<T, true>, w, units(w), kTileThreads, scores_bytes(w, true), stream);
  if (error == cudaSuccess) error = launch_scan<T, true>(x, w, stream);
  if (error == cudaSuccess) error = launch_input_gradients(w, stream);
  if (error == cudaSuccess) error = launch(gate_gradients_kernel<T>, w, (units(w) + 3) / 4, 128, 0, stream);
  return error;
}

template <typename T>
cudaError_t backward(const MlstmBackward& x, Arena& arena, cudaStream_t stream) {
  const MlstmInputs& in = x.inputs;
  const Plan plan = make_plan(in, true);
  Work<T> w = make_work<T>(in);
  take_work(arena, in, plan, true, w);
  const Padding keys(arena, in, in.K, {in.q_BSHK, in.k_BSHK, x.grad_q_BSHK, x.grad_k_BSHK}, stream);
  const Padding values(arena, in, in.V, {in.v_BSHV, x.h_BSHV, x.grad_h_BSHV, x.grad_v_BSHV}, stream);
  cudaError_t error = first_error({keys.read(in.q_BSHK, w.q_BSHK), keys.read(in.k_BSHK, w.k_BSHK), values.read(in.v_BSHV, w.v_BSHV),
                                   values.read(x.h_BSHV, w.read_h_BSHV), values.read(x.grad_h_BSHV, w.grad_h_BSHV)});
  keys.write(x.grad_q_BSHK, w.grad_q_BSHK);
  keys.write(x.grad_k_BSHK, w.grad_k_BSHK);
  values.write(x.grad_v_BSHV, w.grad_v_BSHV);
  // States at the segments' borders; what goes back from one segment to the one before.
  std::vector<Border> initial(size_t(plan.num_segments), Border{});
  for (int segment = 1; segment < plan.num_segments; ++segment) take_border(arena, in, initial[size_t(segment)]);
  Border grad{};
  if (plan.num_segments > 1) take_border(arena, in, grad);
  if (!arena.base || error != cudaSuccess) return error;
  w.grad_igate_BSH = x.grad_igate_BSH;
  w.grad_fgate_BSH = x.grad_fgate_BSH;

  for (int segment = 0; segment + 1 < plan.num_segments; ++segment) {  // states alone
    set_segment(in, plan, segment, initial[size_t(segment)], w);
    const Border& next = initial[size_t(segment) + 1];
    w.cell_BHKV = next.cell;
    w.normalizer_BHK = next.normalizer;
    w.stabilizer_BH = next.stabilizer;
    error = launch_states(in, w, stream);
    if (error != cudaSuccess) return error;
  }
  w.cell_BHKV = w.normalizer_BHK = w.stabilizer_BH = nullptr;
  w.stores_cells = true;
  for (int segment = plan.num_segments - 1; segment >= 0; --segment) {
    set_segment(in, plan, segment, initial[size_t(segment)], w);
    const bool is_last = segment == plan.num_segments - 1, is_first = segment == 0;
    w.grad_cell_BHKV = is_last ? x.grad_cell_BHKV : grad.cell;
    w.grad_normalizer_BHK = is_last ? x.grad_normalizer_BHK : grad.normalizer;
    w.grad_initial_cell_BHKV = is_first ? x.grad_initial_cell_BHKV : grad.cell;
    w.grad_initial_normalizer_BHK = is_first ? x.grad_initial_normalizer_BHK : grad.normalizer;
    w.grad_initial_stabilizer_BH = is_first ? x.grad_initial_stabilizer_BH : nullptr;
    error = backward_segment(in, w, stream);
    if (error != cudaSuccess) return error;
  }
  return first_error({keys.written(w.grad_q_BSHK, x.grad_q_BSHK), keys.written(w.grad_k_BSHK, x.grad_k_BSHK),
                      values.written(w.grad_v_BSHV, x.grad_v_BSHV)});
}

bool is_valid(const MlstmInputs& x) {
  return x.B > 0 && x.S > 0 && x.H > 0 && x.K > 0 && x.V > 0 && x.type != Type::float32;
}

}  // namespace

size_t mlstm_forward_workspace(const MlstmForward& x) {
  Arena arena{nullptr};
  forward<__half>(x, arena, nullptr);
  return arena.used;
}
size_t mlstm_backward_workspace(const MlstmBackward& x) {
  Arena arena{nullptr};
  backward<__half>(x, arena, nullptr);
  return arena.used;
}

cudaError_t mlstm_forward(const MlstmForward& x, cudaStream_t stream) {
  if (!is_valid(x.inputs) || !x.workspace) return cudaErrorInvalidValue;
  Arena arena{static_cast<unsigned char*>(x.workspace)};
  return x.inputs.type == Type::bfloat16 ? forward<__nv_bfloat16>(x, arena, stream) : forward<__half>(x, arena, stream);
}
cudaError_t mlstm_backward(const MlstmBackward& x, cudaStream_t stream) {
  if (!is_valid(x.inputs) || !x.workspace) return cudaErrorInvalidValue;
  Arena arena{static_cast<unsigned char*>(x.workspace)};
  return x.inputs.type == Type::bfloat16 ? backward<__nv_bfloat16>(x, arena, stream) : backward<__half>(x, arena, stream);
}

}  // namespace distil_xlstm::kernels::cuda
