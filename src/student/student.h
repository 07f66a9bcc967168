// A student: a recurrent language model over its teacher's frozen embedding and head, of which training changes the rest.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "nn/language_model.h"
#include "ops/mlstm.h"
#include "student/shape.h"

namespace distil_xlstm::student {

struct StudentForwardOptions {
  at::ScalarType compute_dtype = at::kFloat;  // float32, bfloat16, float16 for matrix products; parameters stay float32
  bool collect_layers = false;                // keep every layer's output
  bool activation_checkpointing = false;      // recompute each layer in backward
  ops::MlstmForm mlstm_form = ops::MlstmForm::chunkwise;
  // Not null: layer k > 0 gets (*layer_inputs_BSD)[k - 1] in place of what layer k - 1 has made, one a layer but the first.
  const std::vector<Tensor>* layer_inputs_BSD = nullptr;
};

struct StudentOutput {
  Tensor last_hidden_BSD;                 // after the final norm: the head's input
  Tensor final_hidden_BSD;                // output of the last layer, before the final norm
  std::vector<Tensor> layer_outputs_BSD;  // when collect_layers
};

// What becomes of a parameter in training.
struct ParameterTraits {
  std::string group;    // of parameters that are trained alike (ParameterSpec::group)
  bool decays = false;  // whether weight decay applies
};

struct AttentionMatrix;  // student/mixer.h

class Student : public nn::LanguageModel {
 public:
  // Differentiable in the trainable parameters. Rows start from the zero state, or from *state (then updated, truncated: no gradient).
  [[nodiscard]] virtual StudentOutput forward(const Tensor& tokens_BS, const Tensor& is_start_BS, const StudentForwardOptions& options,
                                              nn::DecodeState* state = nullptr) = 0;
  // What the token mixer of layer `layer` adds to the stream x_BSD [B, S, D], and nothing behind it. Differentiable as forward is. Throws
  // ValueError where the student's layers are not its teacher's (StudentShape::keeps_teacher_layers).
  [[nodiscard]] virtual Tensor mixer_output(int64_t layer, const Tensor& x_BSD, const Tensor& is_start_BS,
                                            const StudentForwardOptions& options);
  // How far the matrix by which the mixer of a layer mixes tokens on the stream x_BSD is from attention's (ops::mixing_error_sum);
  // undefined where that layer's mixer has none (Mixer::has_mixing_matrix). Differentiable. Throws ValueError as mixer_output does.
  [[nodiscard]] virtual Tensor mixing_error_sum(int64_t layer, const Tensor& x_BSD, const Tensor& is_start_BS,
                                                const AttentionMatrix& attention, const StudentForwardOptions& options);
  // Whether that layer keeps its teacher's own mixer, so that nothing is left to align.
  [[nodiscard]] virtual bool keeps_mixer(int64_t /*layer*/) const { return false; }
  // What a fresh student takes from the first rows of training, where it says that it wants them: layer_inputs_BSD is the stream before
  // each of the teacher's layers on these rows. Without the teacher, what needs its weights stays as it is.
  [[nodiscard]] virtual bool starts_from_rows() const { return false; }
  virtual void start_from_rows(const std::vector<Tensor>& /*layer_inputs_BSD*/, const Tensor& /*is_start_BS*/,
                               const nn::LanguageModel* /*teacher*/ = nullptr) {}
  [[nodiscard]] virtual const StudentShape& shape() const = 0;
  // Trainable parameters by their stored names, float32 leaves; requires_grad but where a stage leaves them out.
  [[nodiscard]] virtual const NamedTensors& parameters() const = 0;
  // What becomes of each in training, in the same order.
  [[nodiscard]] virtual std::vector<ParameterTraits> parameter_traits() const = 0;
  [[nodiscard]] virtual const Tensor& embedding_weight() const = 0;
  // Another student over the same storage, whose parameters are leaves of their own: it sees every change of the values, and gradients do
  // not mix, so that several threads may each run one.
  [[nodiscard]] virtual std::unique_ptr<Student> replica() const = 0;
  virtual void set_compute_dtype(at::ScalarType dtype) = 0;  // for forward_hidden / forward_step

  // The stored form in one of the kind's layouts (StudentShape::to_json); with_frozen adds embedding and head.
  [[nodiscard]] virtual NamedTensors stored_tensors(std::string_view layout, bool with_frozen) const = 0;
};

}  // namespace distil_xlstm::student
