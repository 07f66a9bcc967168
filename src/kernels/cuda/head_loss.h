// Losses over the two LM heads' logits of one tile of positions, with the gradient in place (docs/mathematics.md 6): what
// kernels/cpu/head_loss.h computes, on CUDA. Letters: P positions of the tile, V vocabulary.
//
// One block walks twice over a row: sums, then the gradient. Bytes: P * V * (2 * 2 logits + 1 gradient), or half the reading where a tile
// stays in L2. Arithmetic is float, totals of a row double; up to 7 exponentials an element.
#pragma once

#include "kernels/cuda/types.h"
#include "kernels/head_objective.h"

namespace distil_xlstm::kernels::cuda {

struct HeadLoss {
  Type logits_type;    // of student and teacher
  Type gradient_type;  // the logits' type, or a half-precision one with float32 logits
  int64_t P, V;
  int64_t stride, gradient_stride;  // elements from row to row, of their own type
  const void* student_PV;           // 16-byte aligned, as every row: stride * size of an element is a multiple of 16
  const void* teacher_PV;           // likewise; null: only ce is computed, the other sums become NaN
  void* gradient_PV;                // null: no gradient. May be student_PV: each row is then overwritten from its first byte on
  const int64_t* targets_P;         // outside [0, V): the row's losses are NaN and its gradient lacks the label's part
  const uint8_t* valid_P;           // null: all count. Rows with 0 add nothing and have a zero gradient, whatever their logits hold

  HeadObjective objective;
  double gradient_scale;  // multiplies the gradient

  double* values_P7;  // every position's losses: workspace and output
  double* sums_7;     // added to, in an order that does not change; null: values_P7 alone
};

cudaError_t head_loss_tile(const HeadLoss& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
