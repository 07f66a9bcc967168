// Row-wise losses over logits that exist for one tile of positions, with the gradient in place (docs/mathematics.md 6).
#pragma once

#include <cstdint>

namespace distil_xlstm::kernels {

enum class HeadDivergence { forward_kl, reverse_kl, jsd };

// Order of the sums a row has: [ce, kd, kl_at_1, teacher_nll, agreement, mse, mixed_ce].
constexpr int kNumHeadSums = 7;

template <typename Real>
struct HeadLossRows {
  Real* student_PV = nullptr;          // logits; overwritten by the gradient when with_gradient
  const Real* teacher_PV = nullptr;    // nullptr: no teacher, only ce is computed and the other sums are NaN
  const int64_t* targets_P = nullptr;  // in [0, vocab_size)
  double* sums_P7 = nullptr;           // one row of sums a position
  int64_t vocab_size = 0;

  // d/dlogits of ce_weight ce + kd_weight kd + mse_weight mse + label_weight mixed_ce, times gradient_scale.
  bool with_gradient = false;
  double gradient_scale = 1.0;
  double ce_weight = 0.0, kd_weight = 0.0, mse_weight = 0.0, label_weight = 0.0;
  double label_mix = 0.0;  // share of the one-hot label in the mixed target; the rest is the teacher's softmax at T = 1
  double temperature = 1.0;
  HeadDivergence divergence = HeadDivergence::forward_kl;
  double jsd_beta = 0.5;
  double mse_scale = 1.0;
  bool mse_centered = false;
};

// Rows [begin, end). Real is float (vectorised, AVX-512 or AVX2 where the processor has it) or double (plain loops).
// Exponentials are taken after subtracting the row's maximum; sums run in Real over blocks of 1024 and in double over blocks.
template <typename Real>
void head_loss_rows(const HeadLossRows<Real>& rows, int64_t begin, int64_t end);

}  // namespace distil_xlstm::kernels
