// Terms of the loss on hidden states, chosen by name: what each needs of both models, and its sum, of the models or of single layers.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "config/run_config.h"
#include "student/student.h"
#include "teacher/teacher.h"

namespace distil_xlstm::distill {

class HiddenTerm {
 public:
  virtual ~HiddenTerm() = default;

  [[nodiscard]] virtual std::string name() const = 0;                                // of its mean in metrics: "alignment_loss"
  [[nodiscard]] virtual teacher::TeacherForwardOptions teacher_options() const = 0;  // what the teacher must collect
  [[nodiscard]] virtual bool needs_layers() const = 0;  // every layer's output of the student (StudentForwardOptions::collect_layers)
  // Whether loss_sum of a batch is the sum of those of its rows, so that threads may share them.
  [[nodiscard]] virtual bool is_sum_over_rows() const = 0;
  // Steps between two measurements where its weight is 0; 0: it is not measured then.
  [[nodiscard]] virtual int64_t measured_every() const = 0;
  // Sum over the rows, without its weight, differentiable in the student's states: divided by the rows of the whole step. mask_BS (uint8):
  // tokens that count; rows without any count as 0.
  [[nodiscard]] virtual Tensor loss_sum(const student::StudentOutput& student, const teacher::TeacherOutput& teacher,
                                        const Tensor& mask_BS) const;
  // Whether it compares the matrices by which a layer mixes tokens (student::Student::mixing_error_sum), in stages that align layers.
  [[nodiscard]] virtual bool compares_matrices() const { return false; }
  // The same of one layer's mixer by itself and the attention of that layer, in stages that align layers (Stage::aligns_layers).
  [[nodiscard]] virtual Tensor layer_loss_sum(const Tensor& student_BSD, const Tensor& teacher_BSD, const Tensor& mask_BS) const;
};

struct HiddenTermContext {
  const config::DistillSettings& settings;
  int64_t teacher_layers = 0, student_layers = 0;
};
// Throws ConfigError where settings and depths do not fit.
using MakeHiddenTerm = std::function<std::unique_ptr<HiddenTerm>(const HiddenTermContext&)>;

// Adds a term beside "alignment_loss", "layer_error" and "matrix_error". Throws ValueError when the name is taken.
void add_hidden_term(const std::string& name, MakeHiddenTerm make);
// Throws ConfigError that names those there are.
std::unique_ptr<HiddenTerm> make_hidden_term(const std::string& name, const HiddenTermContext& context);

}  // namespace distil_xlstm::distill
