// What the kernels of the chunkwise mLSTM share (mlstm_chunkwise.h). Each mlstm_*.cuh holds one of its steps, for mlstm_chunkwise.cu alone.
#pragma once

#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/mlstm_chunkwise.h"
#include "kernels/cuda/mma_tile.cuh"
#include "kernels/mlstm_constants.h"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int L = kMlstmChunk;
constexpr int kTile = L * L;  // elements of a tile of 64 tokens and 64 columns
constexpr int kStages = 3;    // tiles in flight
constexpr float kEps = float(kMlstmEps), kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
constexpr float kMinFrame = float(kMinReadoutFrame) * kLog2E;
static_assert(kEps == 1e-6f);
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

}  // namespace
}  // namespace distil_xlstm::kernels::cuda
