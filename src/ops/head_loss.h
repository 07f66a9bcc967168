// Losses over the two LM heads in tiles of positions: full logits never exist (spec distillation.md sections 2 and 7).
#pragma once

#include <string_view>

#include "ops/tensor.h"

namespace distil_xlstm::ops {

enum class Divergence { forward_kl, reverse_kl, jsd };

struct HeadLossOptions {
  double ce_weight = 0.0;         // weight of the cross-entropy in the gradient
  double kd_weight = 0.0;         // weight of kd_loss (T^2 included)
  double mse_weight = 0.0;        // weight of mean over the vocabulary of (z_S - mse_scale * z_T)^2 (annealing-kd stage I)
  double label_weight = 0.0;      // teacher-annealing: weight of the mixed-target cross-entropy, target = label_mix*onehot + (1-label_mix)*p_T
  double label_mix = 0.0;
  double temperature = 1.0;
  Divergence divergence = Divergence::forward_kl;
  double jsd_beta = 0.5;
  double mse_scale = 1.0;
  bool mse_centered = false;      // subtract row means of both logits first
  int64_t tile_positions = 0;     // 0: chosen by size
  bool with_gradient = true;
};

// Sums over unmasked positions (divide by num_targets for means); float64 scalars on the host after .item(), kept as one device
// tensor so that a training step need not wait: [ce, kd, kl_at_1, teacher_nll, agreement, mse, mixed_ce].
// kd is T^2 * divergence at `temperature`; kl_at_1 is forward KL at T = 1; all in nats, measured whatever the weights.
struct HeadLosses {
  Tensor sums;                    // float64 [7]
  Tensor grad_student_hidden_BSD; // d(weighted sum over positions)/d hidden * gradient_scale; dtype of the hidden states; undefined without gradient
};

enum HeadLossIndex : int { kCe = 0, kKd, kKlAt1, kTeacherNll, kAgreement, kMse, kMixedCe, kNumHeadLosses };

// student_hidden_BSD, teacher_hidden_BSD: after each model's final norm. Heads [V, D]. targets_BS int64, mask_BS uint8.
// teacher_hidden may be undefined (method "ce" without a teacher): then only ce counts and the rest is NaN.
// gradient_scale multiplies the gradient (1 / targets of the whole optimizer step, times the loss scale).
// No gradient is made for the heads. Vocabularies may differ in padding: the common min(V_S, V_T) rows are used... they must be equal otherwise: ShapeError.
HeadLosses head_losses(const Tensor& student_hidden_BSD, const Tensor& student_head_VD, const Tensor& teacher_hidden_BSD,
                       const Tensor& teacher_head_VD, const Tensor& targets_BS, const Tensor& mask_BS,
                       const HeadLossOptions& options, double gradient_scale);

}  // namespace distil_xlstm::ops
