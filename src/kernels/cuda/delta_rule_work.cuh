// What the kernels of the chunkwise delta rule share (delta_rule.h). Each delta_rule_*.cuh holds some of its steps, for delta_rule.cu
// alone.
#pragma once

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/delta_rule.h"
#include "kernels/cuda/mma_tile.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int L = kDeltaChunk;
constexpr int kTile = L * L;  // elements of a tile of 64 tokens and 64 columns
constexpr int kTileThreads = 128, kScanThreads = 256;

// Letters beside those of delta_rule.h: N chunks; U units, one chunk of one head of one row, in the order [B][H][N].
template <typename T>
struct Work {
  int B, S, H, K, V, N;
  const T *q_BSHK, *k_BSHK, *v_BSHV, *grad_h_BSHV;
  const float *igate_BSH, *fgate_BSH;
  const uint8_t* is_start_BS;
  const float *initial_cell_BHKV, *grad_cell_BHKV;  // or null, both
  T *h_BSHV, *grad_q_BSHK, *grad_k_BSHK, *grad_v_BSHV;
  float *grad_igate_BSH, *grad_fgate_BSH;
  float *cell_BHKV, *grad_initial_cell_BHKV;  // or null, both

  // Per token: beta, e and x; the sum of log2 g from the chunk's start in two floats; starts up to it in the chunk. Beyond S beta is 0, and
  // the rest are as if g were 1 there: e of the last place is what a chunk carries on.
  float *beta_UL, *entry_UL, *exit_UL, *decay_UL, *rest_UL;
  int* document_UL;
  T *inverse_ULL, *scores_ULL;      // (I + A)^-1 - I, 0 from the diagonal on; P
  T *writes_ULV, *grad_writes_ULV;  // u, z
  T *cells_UKV, *grad_cells_UKV;    // C that enters a chunk; gradient of the C that leaves it

  __device__ int64_t token(int bh, int t) const {  // index into [B S H]
    return (int64_t(bh / H) * S + t) * H + bh % H;
  }
};

// The lane's places in a fragment of 16 x 8 (mma_tile.cuh), from the fragment's first row and column: row `part` (0, 1), the first of two
// columns.
__device__ inline int fragment_row(int part) {
  return part * 8 + (threadIdx.x & 31) / 4;
}
__device__ inline int fragment_column() {
  return (threadIdx.x & 3) * 2;
}

// The two elements of a tile that the lane has in a fragment at (row, column); row as fragment_row gives it, column a multiple of 8.
template <int COLS, typename T>
__device__ inline uint32_t& tile_word(T* tile, int row, int column) {
  return *reinterpret_cast<uint32_t*>(tile + tile_offset<COLS>(row, column >> 3) + fragment_column());
}
template <int COLS, typename T>
__device__ inline float2 tile_pair(const T* tile, int row, int column) {
  return unpack(*reinterpret_cast<const uint32_t*>(tile + tile_offset<COLS>(row, column >> 3) + fragment_column()), T{});
}

// Row `part` of adjacent fragments, from `column` on, to a row in global memory: columns below `width`.
template <typename T, int NT>
__device__ inline void store_row(T* to, const float (&acc)[NT][4], int part, int column, int width) {
#pragma unroll
  for (int j = 0; j < NT; j += 2) {
    const int at = column + j * 8 + gathered_column();
    const uint2 words =
        gather_four(pack(acc[j][part * 2], acc[j][part * 2 + 1], T{}), pack(acc[j + 1][part * 2], acc[j + 1][part * 2 + 1], T{}));
    if (at < width) *reinterpret_cast<uint2*>(to + at) = words;
  }
}

// acc_x += X B, acc_y += Y B, 16 x 8 NT of a warp, over DEPTH: one load of B for both.
template <typename T, int NT, int DEPTH, int A_COLS, int B_COLS, bool kBColumns>
__device__ inline void multiply_two(float (&acc_x)[NT][4], float (&acc_y)[NT][4], const T* x_tile, const T* y_tile, const T* b_tile, int m,
                                    int n) {
#pragma unroll
  for (int k = 0; k < DEPTH; k += 16) {
    uint32_t x[4], y[4];
    load_a<A_COLS, false>(x, x_tile, m, k);
    load_a<A_COLS, false>(y, y_tile, m, k);
#pragma unroll
    for (int j = 0; j < NT; j += 2) {
      uint32_t b[4];
      load_b<B_COLS, kBColumns>(b, b_tile, k, n + j * 8);
      multiply(acc_x[j], x, b[0], b[1], T{});
      multiply(acc_x[j + 1], x, b[2], b[3], T{});
      multiply(acc_y[j], y, b[0], b[1], T{});
      multiply(acc_y[j + 1], y, b[2], b[3], T{});
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::kernels::cuda
