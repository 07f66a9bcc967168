// What the losses over both heads compute, the same for their plain, CPU and CUDA forms (docs/mathematics.md 6). Includes nothing: CUDA
// sources have it too.
#pragma once

namespace distil_xlstm::kernels {

enum class Divergence { forward_kl, reverse_kl, jsd };

// The sums that a position has, in nats and in this order: kd is T^2 * divergence at T, kl_at_1 is forward KL at T = 1, whatever the
// weights. Their names and weights: ops/head_terms.h.
enum HeadSum : int { kCe = 0, kKd, kKlAt1, kTeacherNll, kAgreement, kMse, kMixedCe, kNumHeadSums };

// The gradient is that of ce_weight ce + kd_weight kd + mse_weight mse + label_weight mixed_ce.
struct HeadObjective {
  double ce_weight = 0.0;     // of the cross-entropy
  double kd_weight = 0.0;     // of kd, T^2 included
  double mse_weight = 0.0;    // of the mean over the vocabulary of (z_S - mse_scale * z_T)^2 (annealing-kd, stage I)
  double label_weight = 0.0;  // teacher-annealing: of the cross-entropy against label_mix * onehot + (1 - label_mix) * softmax(z_T)
  double label_mix = 0.0;
  double temperature = 1.0;
  Divergence divergence = Divergence::forward_kl;
  double jsd_beta = 0.5;  // share of the teacher in jsd's mixture
  double mse_scale = 1.0;
  bool mse_centered = false;  // subtract row means of both logits first
};

}  // namespace distil_xlstm::kernels
