// Blocks between a frozen embedding and head with a norm behind them, each block a mixer: what students of several kinds share.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "student/mixer.h"
#include "student/state.h"
#include "student/student.h"

namespace distil_xlstm::student {

struct BlockParts {
  std::vector<std::shared_ptr<const Mixer>> mixers;  // block by block
  std::vector<ParameterSpec> specs;                  // of all parameters by their full names: the blocks' in order, then the last norm's
  NamedTensors parameters;                           // in that order, float32, or float64 for tests
  Tensor embedding_VD, head_VD;
  bool is_tied = false;                            // the head is the embedding, and is not stored beside it
  std::string embedding, block_prefix, last_norm;  // names, without ".weight": "token_embedding", "xlstm_block_stack.blocks."
};

class BlockStudent : public Student {
 public:
  explicit BlockStudent(BlockParts parts);

  StudentOutput forward(const Tensor& tokens_BS, const Tensor& is_start_BS, const StudentForwardOptions& options,
                        nn::DecodeState* decode_state = nullptr) final;
  Tensor mixer_output(int64_t layer, const Tensor& x_BSD, const Tensor& is_start_BS, const StudentForwardOptions& options) final;
  Tensor mixing_error_sum(int64_t layer, const Tensor& x_BSD, const Tensor& is_start_BS, const AttentionMatrix& attention,
                          const StudentForwardOptions& options) final;
  Tensor forward_hidden(const Tensor& tokens_BS, const Tensor& is_start_BS = {}) final;
  std::unique_ptr<nn::DecodeState> new_state(int64_t batch, int64_t max_tokens) final;
  Tensor forward_step(const Tensor& tokens_BS, nn::DecodeState& state) final;
  Tensor logits(const Tensor& hidden) final;
  void for_each_weight(const nn::TensorVisitor& visit, std::string_view prefix = "") const final;
  Tensor forward_shown(const Tensor& tokens_BS, const Tensor& is_start_BS, const nn::TensorVisitor& visit) final;

  [[nodiscard]] const Tensor& head_weight() const final { return parts_.head_VD; }
  [[nodiscard]] const Tensor& embedding_weight() const final { return parts_.embedding_VD; }
  [[nodiscard]] int64_t vocab_size() const final { return parts_.embedding_VD.size(0); }
  [[nodiscard]] int64_t hidden_size() const final { return parts_.embedding_VD.size(1); }
  [[nodiscard]] at::Device device() const final { return parts_.embedding_VD.device(); }
  [[nodiscard]] std::string precision() const final;
  [[nodiscard]] const NamedTensors& parameters() const final { return parts_.parameters; }
  [[nodiscard]] std::vector<ParameterTraits> parameter_traits() const final;
  [[nodiscard]] std::unique_ptr<Student> replica() const final;
  void set_compute_dtype(at::ScalarType dtype) final { step_dtype_ = effective_dtype(dtype); }

 protected:
  // Output of the last block, in float32 -> what StudentOutput has as final_hidden and last_hidden. `weight_D` is the last norm's,
  // undefined where there is none.
  [[nodiscard]] virtual std::pair<Tensor, Tensor> last_states(const Tensor& x_BSD, const Tensor& weight_D) const = 0;
  // One of the same kind over other leaves.
  [[nodiscard]] virtual std::unique_ptr<BlockStudent> with_parameters(BlockParts parts) const = 0;

  [[nodiscard]] const BlockParts& parts() const { return parts_; }
  [[nodiscard]] const MixerWeights& block_weights(int64_t block) const { return blocks_.at(static_cast<size_t>(block)); }
  // Embedding, and head where it is stored too, by their names.
  void add_frozen(NamedTensors& tensors) const;

 private:
  // Of one layer by itself: its weights and what it is called with.
  std::pair<const MixerWeights&, MixerCall> layer_call(int64_t layer, const Tensor& is_start_BS, const StudentForwardOptions& options);
  [[nodiscard]] at::ScalarType effective_dtype(at::ScalarType asked) const;
  [[nodiscard]] MixerCall mixer_call(const Tensor& is_start_BS, const StudentForwardOptions& options) const;
  const std::vector<MixerWeights>& converted_blocks(at::ScalarType compute_dtype);

  BlockParts parts_;
  Tensor last_norm_D_;
  std::vector<MixerWeights> blocks_, cast_blocks_;
  at::ScalarType dtype_ = at::kFloat, step_dtype_ = at::kFloat, cast_dtype_ = at::kFloat;
  int64_t cast_version_ = -1;
  std::mutex cast_mutex_;  // of cast_blocks_, cast_dtype_, cast_version_
};

// Draws every parameter from a stream of its own, in double precision on the CPU: the numbers are the same for every device.
NamedTensors draw_parameters(const std::vector<ParameterSpec>& specs, uint64_t seed, at::Device device, at::ScalarType dtype);

// Throws ShapeError unless the tensor is [vocab_size, hidden_size].
void check_frozen(const char* what, const Tensor& tensor, int64_t vocab_size, int64_t hidden_size);
// Throws ValueError but for float32 and float64.
void check_parameter_dtype(at::ScalarType dtype);

}  // namespace distil_xlstm::student
