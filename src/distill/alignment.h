// Alignment of student and teacher hidden states: Frobenius [P 37] and cosine; average, ratio, block_wise (docs/mathematics.md 6).
#pragma once

#include <vector>

#include "config/run_config.h"
#include "student/student.h"
#include "teacher/teacher.h"

namespace distil_xlstm::distill {

class Alignment {
 public:
  // Throws ConfigError where kind does not fit the depths, or state not the target.
  Alignment(const config::AlignmentSettings& settings, int64_t teacher_layers, int64_t student_blocks);

  [[nodiscard]] teacher::TeacherForwardOptions teacher_options() const;  // what the teacher must collect
  [[nodiscard]] bool needs_blocks() const;                               // whether every student block's output is needed
  // Whether loss_sum of a batch is the sum of those of its rows.
  [[nodiscard]] bool is_sum_over_rows() const { return settings_.scope == config::AlignmentScope::sequence; }

  // Sum over rows (scope "sequence") or one value times the rows (scope "batch"), un-weighted, differentiable in the student's states;
  // divide by the rows of the whole optimizer step. mask_BS (uint8): tokens that count; rows without any count as 0.
  [[nodiscard]] Tensor loss_sum(const student::StudentOutput& student, const teacher::TeacherOutput& teacher, const Tensor& mask_BS) const;

 private:
  config::AlignmentSettings settings_;
  std::vector<int64_t> group_sizes_;
};

}  // namespace distil_xlstm::distill
