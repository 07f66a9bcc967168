// Alignment of student and teacher hidden states: Frobenius [P 37] and cosine; average, ratio, block_wise (docs/mathematics.md 6).
#pragma once

#include <vector>

#include "distill/hidden_term.h"

namespace distil_xlstm::distill {

// Throws ConfigError where [distill.alignment] contradicts itself, whatever the models.
void check_alignment(const config::AlignmentSettings& settings);

class Alignment final : public HiddenTerm {
 public:
  // Throws ConfigError where kind does not fit the depths, or state not the target.
  Alignment(const config::AlignmentSettings& settings, int64_t teacher_layers, int64_t student_blocks);

  [[nodiscard]] std::string name() const override { return "alignment_loss"; }
  [[nodiscard]] teacher::TeacherForwardOptions teacher_options() const override;
  [[nodiscard]] bool needs_layers() const override;
  [[nodiscard]] bool is_sum_over_rows() const override { return settings_.scope == config::AlignmentScope::sequence; }
  [[nodiscard]] int64_t measured_every() const override { return settings_.every_steps; }
  // With scope "batch" the value is that of the batch times its rows.
  [[nodiscard]] Tensor loss_sum(const student::StudentOutput& student, const teacher::TeacherOutput& teacher,
                                const Tensor& mask_BS) const override;

 private:
  config::AlignmentSettings settings_;
  std::vector<int64_t> group_sizes_;
};

}  // namespace distil_xlstm::distill
