// The terms over both heads, one row each: what a term is called, which weight it has, and its plain form. Those of the kernels come
// first; others are added by name and computed in plain operations. Letters: P positions of a tile, V vocabulary.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/head_objective.h"
#include "ops/tensor.h"

namespace distil_xlstm::ops {

using kernels::Divergence, kernels::HeadObjective;
using kernels::kAgreement, kernels::kCe, kernels::kKd, kernels::kKlAt1, kernels::kMixedCe, kernels::kMse, kernels::kNumHeadSums,
    kernels::kTeacherNll;

// Logits of a tile's positions, of which a plain form makes what it needs; what several need is made once.
class PlainHeadTile {
 public:
  // teacher_PV may be undefined. target_P1: int64, inside the vocabulary.
  PlainHeadTile(const HeadObjective& objective, const Tensor& student_PV, const Tensor& teacher_PV, const Tensor& target_P1);

  const HeadObjective& objective;
  const Tensor &student_PV, &teacher_PV, &target_P1;
  [[nodiscard]] const Tensor& log_q1_PV() const;  // log softmax of the student's, at T = 1
  [[nodiscard]] const Tensor& log_p1_PV() const;  // of the teacher's
  [[nodiscard]] const Tensor& log_qT_PV() const;  // of the student's, at the objective's T
  [[nodiscard]] const Tensor& log_pT_PV() const;
  [[nodiscard]] const Tensor& q1_PV() const;
  [[nodiscard]] const Tensor& p1_PV() const;

 private:
  mutable Tensor log_q1_PV_, log_p1_PV_, log_qT_PV_, log_pT_PV_, q1_PV_, p1_PV_;
};

struct HeadTermValue {
  Tensor value_P;
  Tensor gradient_PV;  // d value / d student's logits; undefined where there is none
};

struct HeadTerm {
  std::string name;  // of its mean in metrics and messages: "ce_loss"
  bool needs_teacher = true;
  double HeadObjective::* weight = nullptr;  // null: measured only, or not one of the kernels'
  // with_gradient false: value_P alone.
  std::function<HeadTermValue(const PlainHeadTile& tile, bool with_gradient)> plain;
  bool grows_with_temperature = false;  // its gradient at a logit is at most about T, of others about 1
};

// [kNumHeadSums], in the order of kernels::HeadSum.
const std::vector<HeadTerm>& kernel_head_terms();

// Adds a term that any method may weigh by its name. Throws ValueError where a term has that name. Not while losses are computed.
void add_head_term(HeadTerm term);

// An added term. Throws ConfigError that names those there are.
const HeadTerm& find_head_term(const std::string& name);

}  // namespace distil_xlstm::ops
