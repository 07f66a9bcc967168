// The xLSTM student: frozen embedding and head shared with the teacher, trainable blocks and post norm.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/model_files.h"
#include "nn/language_model.h"
#include "ops/mlstm.h"
#include "student/config.h"

namespace distil_xlstm::student {

// How stored R and b are laid out (docs/mathematics.md 2): the package's backend that would have saved them.
enum class SlstmLayout { cuda, vanilla };

struct StudentForwardOptions {
  at::ScalarType compute_dtype = at::kFloat;  // float32, bfloat16, float16 for matrix products; parameters stay float32
  bool collect_blocks = false;                // keep every block's output
  bool activation_checkpointing = false;      // recompute each block in backward
  ops::MlstmForm mlstm_form = ops::MlstmForm::chunkwise;
};

struct StudentOutput {
  Tensor last_hidden_BSD;                 // after the post norm: the head's input
  Tensor final_hidden_BSD;                // output of the last block, before the post norm
  std::vector<Tensor> block_outputs_BSD;  // when collect_blocks
};

struct ParameterTraits {
  std::string group;    // of parameters that are trained alike (ParameterSpec::group)
  bool decays = false;  // whether weight decay applies
};

class StudentState;  // a DecodeState: per block, cell states and convolution tails

class Student : public nn::LanguageModel {
 public:
  // Fresh parameters by the package's init rules from `seed`; embedding and head are the given storage, never copied.
  static std::unique_ptr<Student> create(const StudentConfig& config, const Tensor& embedding_VD, Tensor head_VD, uint64_t seed,
                                         at::Device device, at::ScalarType parameter_dtype = at::kFloat);
  // From a checkpoint or an export (either sLSTM layout). With `embedding`/`head` defined, those are used instead of the stored ones.
  static std::unique_ptr<Student> load(const io::ModelFiles& files, at::Device device, at::ScalarType parameter_dtype = at::kFloat,
                                       Tensor embedding_VD = {}, Tensor head_VD = {});

  // Differentiable in the trainable parameters. Rows start from the zero state, or from *state (then updated, truncated: no gradient).
  [[nodiscard]] virtual StudentOutput forward(const Tensor& tokens_BS, const Tensor& is_start_BS, const StudentForwardOptions& options,
                                              nn::DecodeState* state = nullptr) = 0;
  [[nodiscard]] virtual const StudentConfig& config() const = 0;
  // Trainable parameters by their stored names (`xlstm_block_stack.blocks.0.xlstm_norm.weight`), float32 leaves with requires_grad; R and b
  // in canonical layout [H, K, 4, K], [H, 4, K].
  [[nodiscard]] virtual const NamedTensors& parameters() const = 0;
  // What becomes of each in training, in the same order.
  [[nodiscard]] virtual std::vector<ParameterTraits> parameter_traits() const = 0;
  [[nodiscard]] virtual const Tensor& embedding_weight() const = 0;
  // Another student over the same storage, whose parameters are leaves of their own: it sees every change of the values, and gradients do
  // not mix, so that several threads may each run one.
  [[nodiscard]] virtual std::unique_ptr<Student> replica() const = 0;
  virtual void set_compute_dtype(at::ScalarType dtype) = 0;  // for forward_hidden / forward_step

  // The stored form: names and layouts as the `xlstm` package writes them; with_frozen adds embedding and head.
  [[nodiscard]] virtual NamedTensors stored_tensors(SlstmLayout layout, bool with_frozen) const = 0;
};

// ParameterTraits::decays of each parameter.
std::vector<bool> decays_of(const Student& student);

}  // namespace distil_xlstm::student
