// The matrix by which an mLSTM with one normaliser mixes values, beside attention's (docs/mathematics.md 13). Letters: B batch, S sequence,
// H heads of K channels, G heads of keys, F features of a head.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

struct MixingMatrices {
  Tensor q_BSHF, k_BSHF;                      // features, not negative
  Tensor igate_BSH, fgate_BSH;                // pre-activations
  Tensor attention_q_BSHK, attention_k_BSGK;  // with positions; G divides H, and scores are q k^T / sqrt(K). Constants
  Tensor is_start_BS;                         // uint8, or undefined: 1 begins a document, whose tokens see none before it
  Tensor mask_BS;                             // uint8: queries that count
};

// Sum over rows of the mean over heads of sum_ij (a_ij - m_ij)^2 / sum_ij a_ij^2 over the queries i that count, in float32 (float64 where
// the features are). Rows without any count as 0. Differentiable in features and gates. Matrices are never whole in memory: at most
// `max_tile_elements` of each at a time (at least a query of all rows). Throws ShapeError.
Tensor mixing_error_sum(const MixingMatrices& in, int64_t max_tile_elements = int64_t{1} << 24);

}  // namespace distil_xlstm::ops
