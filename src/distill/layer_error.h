// How far each layer's mixer is from its teacher's attention on the same inputs: what the first stages of a conversion minimise
// (docs/mathematics.md 12 and 13).
#pragma once

#include "distill/hidden_term.h"

namespace distil_xlstm::distill {

// Sum over rows of |student - teacher|^2 / |teacher|^2 over the tokens of the row that count (mask_BS uint8), in float32 or float64;
// differentiable in the student's. A row without any, or whose teacher has only zeros, counts as 0. Throws ShapeError.
Tensor relative_error_sum(const Tensor& student_BSD, const Tensor& teacher_BSD, const Tensor& mask_BS);

class LayerError final : public HiddenTerm {
 public:
  [[nodiscard]] std::string name() const override { return "layer_error"; }
  [[nodiscard]] teacher::TeacherForwardOptions teacher_options() const override { return {.collect_attention = true}; }
  [[nodiscard]] bool needs_layers() const override { return false; }
  [[nodiscard]] bool is_sum_over_rows() const override { return true; }
  [[nodiscard]] int64_t measured_every() const override { return 0; }
  [[nodiscard]] Tensor layer_loss_sum(const Tensor& student_BSD, const Tensor& teacher_BSD, const Tensor& mask_BS) const override {
    return relative_error_sum(student_BSD, teacher_BSD, mask_BS);
  }
};

// How far the matrix by which each layer's mixer mixes tokens is from attention's (docs/mathematics.md 13).
class MatrixError final : public HiddenTerm {
 public:
  [[nodiscard]] std::string name() const override { return "matrix_error"; }
  [[nodiscard]] teacher::TeacherForwardOptions teacher_options() const override {
    return {.collect_attention = true, .collect_heads = true};
  }
  [[nodiscard]] bool needs_layers() const override { return false; }
  [[nodiscard]] bool is_sum_over_rows() const override { return true; }
  [[nodiscard]] int64_t measured_every() const override { return 0; }
  [[nodiscard]] bool compares_matrices() const override { return true; }
};

}  // namespace distil_xlstm::distill
