// The paper's student: xLSTM v1 blocks between the teacher's frozen embedding and head, and a norm behind them (docs/mathematics.md 1 to
// 5).
#pragma once

#include <memory>
#include <string_view>

#include "io/model_files.h"
#include "student/block_student.h"
#include "student/paper/config.h"

namespace distil_xlstm::student {

// How stored R and b are laid out (docs/mathematics.md 2): the package's backend that would have saved them.
using config::SlstmLayout;

// "" is "cuda". Throws ConfigError for a name that there is not.
SlstmLayout parse_slstm_layout(std::string_view name);

class PaperStudent : public BlockStudent {
 public:
  using BlockStudent::BlockStudent;

  // Fresh parameters by the package's init rules from `seed`; embedding and head are the given storage, never copied.
  static std::unique_ptr<PaperStudent> create(const StudentConfig& config, const Tensor& embedding_VD, Tensor head_VD, uint64_t seed,
                                              at::Device device, at::ScalarType parameter_dtype = at::kFloat);
  // From a checkpoint or an export (either sLSTM layout). With `embedding`/`head` defined, those are used instead of the stored ones.
  static std::unique_ptr<PaperStudent> load(const io::ModelFiles& files, at::Device device, at::ScalarType parameter_dtype = at::kFloat,
                                            Tensor embedding_VD = {}, Tensor head_VD = {});

  [[nodiscard]] virtual const StudentConfig& config() const = 0;
  // Parameters are named `xlstm_block_stack.blocks.0.xlstm_norm.weight`; R and b in canonical layout [H, K, 4, K], [H, 4, K]. Stored: names
  // and layouts as the `xlstm` package writes them.
  [[nodiscard]] virtual NamedTensors stored_tensors(SlstmLayout layout, bool with_frozen) const = 0;
  [[nodiscard]] NamedTensors stored_tensors(std::string_view layout, bool with_frozen) const final {
    return stored_tensors(parse_slstm_layout(layout), with_frozen);
  }
};

}  // namespace distil_xlstm::student
