// Row-wise losses over logits that exist for one tile of positions, with the gradient in place (docs/mathematics.md 6).
#pragma once

#include <cstdint>

#include "kernels/head_objective.h"

namespace distil_xlstm::kernels {

template <typename Real>
struct HeadLossRows {
  Real* student_PV = nullptr;          // logits; head_loss_rows overwrites them by the gradient when with_gradient
  const Real* teacher_PV = nullptr;    // nullptr: no teacher, only ce is computed and the other sums are NaN
  const int64_t* targets_P = nullptr;  // in [0, vocab_size)
  double* sums_P7 = nullptr;           // kNumHeadSums a position
  int64_t vocab_size = 0;

  HeadObjective objective;
  bool with_gradient = false;
  double gradient_scale = 1.0;  // multiplies the gradient
};

// Coefficients of d/dlogits, gradient_scale included.
struct HeadLossCoefficients {
  double q1 = 0, p1 = 0;                  // on exp(s - max_s) and exp(t - max_t): their normalisers are inside
  double qT = 0, pT = 0;                  // forward KL
  double reverse = 0, reverse_shift = 0;  // on exp((s - max_s) / T) * (reverse_shift - d / T)
  double mse = 0, r_mean = 0;
  double jsd = 0, jsd_log_zs = 0, jsd_log_zt = 0, jsd_kl_q = 0;  // (1 - b) q (log(q/m) - KL(q || m))
  double target = 0;                                             // taken off the target's entry
};

// What is known of a row from the columns seen so far; a new one knows nothing. Sums are taken below the maxima so far.
struct HeadLossState {
  bool has_begun = false;
  double max_s = 0, max_t = 0;
  int64_t index_s = 0, index_t = 0;  // first places of the maxima
  double es1 = 0, et1 = 0, esT = 0, etT = 0, et1_d = 0, etT_d = 0, esT_d = 0, et1_s = 0;
  double r = 0, r2 = 0, r_reference = 0;
  HeadLossCoefficients gradient;  // from head_loss_finish on
};

// Real is float (vectorised, AVX-512 or AVX2 where the processor has it) or double (plain loops). Exponentials are taken below the row's
// maximum; sums run in Real over blocks of 1024 columns and in double over blocks. states[p] belongs to row p.
//
// Rows [begin, end), columns [first, last): each column once, from left to right, so that a part of the vocabulary is seen while it is in
// cache from its product.
template <typename Real>
void head_loss_accumulate(const HeadLossRows<Real>& rows, HeadLossState* states, int64_t begin, int64_t end, int64_t first, int64_t last);
// After the last column: the losses, and what the gradient needs.
template <typename Real>
void head_loss_finish(const HeadLossRows<Real>& rows, HeadLossState* states, int64_t begin, int64_t end);
// Then the gradient, any columns: out[p * out_row + v - first]; `out` may be the student's logits themselves.
template <typename Real>
void head_loss_gradient(const HeadLossRows<Real>& rows, const HeadLossState* states, int64_t begin, int64_t end, int64_t first,
                        int64_t last, Real* out, int64_t out_row);

// All of it, the gradient in place.
template <typename Real>
void head_loss_rows(const HeadLossRows<Real>& rows, int64_t begin, int64_t end);

}  // namespace distil_xlstm::kernels
