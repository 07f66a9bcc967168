// Losses over the two LM heads in tiles of positions: full logits never exist (docs/mathematics.md 6).
#pragma once

#include <memory>
#include <vector>

#include "ops/head_terms.h"
#include "ops/packed_matrix.h"
#include "ops/tensor.h"

namespace distil_xlstm::ops {

// An added term and its weight in the gradient.
struct WeightedHeadTerm {
  const HeadTerm* term = nullptr;
  double weight = 0.0;
};

// How the losses are computed; what they are is HeadObjective.
struct HeadLossOptions {
  bool with_gradient = true;
  int64_t tile_positions = 0;           // 0: chosen by size (head_tile)
  int64_t num_callers = 1;              // threads that are in head_losses at once and share its memory
  std::vector<WeightedHeadTerm> added;  // terms beyond the kernels'; with any, all are computed in plain operations
};

// Sums over unmasked positions (divide by num_targets for means), as one device tensor so that a training step need not wait: those of
// kernels::HeadSum in their order, then one for each added term; measured whatever the weights.
struct HeadLosses {
  Tensor sums;                     // float64 [kNumHeadSums + added terms]
  Tensor grad_student_hidden_BSD;  // d(weighted sum over positions)/d hidden * gradient_scale; dtype of the hidden states; undefined
                                   // without gradient
};

// How the losses cut their positions: a tile's two logits together take positions * position_bytes.
struct HeadTile {
  int64_t positions = 0, position_bytes = 0;
  [[nodiscard]] int64_t size_bytes() const { return positions * position_bytes; }
};

enum class HeadBackend { cpu, cuda_kernel, aten };

// The tile that head_losses takes by itself; element_size in bytes is that of the logits. Estimates of memory ask it too.
HeadTile head_tile(HeadBackend backend, int64_t vocab_size, int64_t element_size, int64_t num_callers);

// Columns of the vocabulary that a CPU takes at a time: the logits of a tile's positions are still in cache when their losses are summed,
// and the gradient when it is multiplied.
constexpr int64_t kHeadColumns = 1024;

// A head, for head_losses. The tensor alone is enough; who calls often on a CPU lets it be packed once.
class Head {
 public:
  Head() = default;
  Head(Tensor weight_VD) : weight_VD_(std::move(weight_VD)) {}  // NOLINT(google-explicit-constructor): most callers have the tensor only
  // With a second copy of the head in the layout of the CPU's products, and a third one where with_gradient, both in float32; on other
  // devices and without MKL as product_head(weight_VD).
  static Head packed(const Tensor& weight_VD, bool with_gradient);

  // A part of the vocabulary, kHeadColumns of it or what is left.
  struct Columns {
    PackedMatrix logits_DV, gradient_VD;
  };
  [[nodiscard]] const Tensor& weight() const { return weight_VD_; }
  [[nodiscard]] const Columns* columns() const { return columns_.get(); }  // null: not packed

 private:
  Tensor weight_VD_;
  std::shared_ptr<Columns[]> columns_;
};

// A head as the products on its device take it: float32 in place of half precision on a CPU. head_losses converts by itself, in each
// call; a caller with many calls does it once.
Tensor product_head(const Tensor& head_VD);

//   student_hidden_BSD, teacher_hidden_BSD  after each model's final norm; the widths may differ
//   student_head_VD, teacher_head_VD        the LM heads, whose dtype the matrix products have (float32 on a CPU; float64 with float64);
//                                           logits and reductions are float32 (float64); no gradient is made for them
//   targets_BS, mask_BS                     int64 next tokens; uint8, 0: the position is left out, whatever stands there
//   gradient_scale                          multiplies the gradient (1 / targets of the whole optimizer step, times the loss scale)
// teacher_hidden may be undefined (method "ce" without a teacher): then only ce counts and the other sums are NaN.
// Throws ShapeError where sizes do not fit (the vocabularies must be equal), ValueError for a setting outside its range, for weights that
// need a teacher, and, on a CPU, for a counted target outside the vocabulary. Nothing waits for a GPU.
HeadLosses head_losses(const Tensor& student_hidden_BSD, const Head& student_head_VD, const Tensor& teacher_hidden_BSD,
                       const Head& teacher_head_VD, const Tensor& targets_BS, const Tensor& mask_BS, const HeadObjective& objective,
                       double gradient_scale = 1.0, const HeadLossOptions& options = {});

}  // namespace distil_xlstm::ops
