// One tile of head_losses: from logits to sums and the gradient in place. Letters: P positions of the tile, V vocabulary.
#pragma once

#include "ops/head_loss.h"

namespace distil_xlstm::ops {

struct HeadLossTile {
  Tensor student_PV;  // logits, float32 or float64, rows contiguous; overwritten by the gradient when options.with_gradient
  Tensor teacher_PV;  // the same, or undefined
  Tensor targets_P;   // int64; anything where valid_P is false
  Tensor valid_P;     // bool, or undefined: all count
  const HeadObjective& objective;
  const HeadLossOptions& options;
  double gradient_scale;
  Tensor sums;  // float64 [kNumHeadSums, and one for each of options.added] on the tile's device: added to
};

// Vectorised kernel over threads; valid_P must be undefined (the caller leaves masked positions out).
void head_loss_tile_cpu(const HeadLossTile& tile);

// The same in parts of the vocabulary, for logits that come column by column (kernels/cpu/head_loss.h); float32 or float64.
class HeadLossColumns {
 public:
  explicit HeadLossColumns(const HeadLossTile& tile);
  ~HeadLossColumns();
  HeadLossColumns(const HeadLossColumns&) = delete;
  HeadLossColumns& operator=(const HeadLossColumns&) = delete;
  // The logits of columns [first, last) are there: each column once, from left to right.
  void accumulate(int64_t first, int64_t last);
  // All are: adds to the tile's sums.
  void finish();
  // Then the gradient of columns [first, last) into out_PC, rows contiguous.
  void gradient(int64_t first, int64_t last, const Tensor& out_PC) const;

 private:
  struct Rows;
  std::unique_ptr<Rows> rows_;
  const HeadLossTile& tile_;
};

// The plain forms of all terms (ops/head_terms.h): any device, nothing waits for the device. What the others are compared with, and the
// only form that knows added terms.
void head_loss_tile_aten(const HeadLossTile& tile);

}  // namespace distil_xlstm::ops
