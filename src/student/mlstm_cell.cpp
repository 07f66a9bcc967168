#include "student/mlstm_cell.h"

#include "base/error.h"

namespace distil_xlstm::student {

Tensor run_mlstm_cell(const ops::MlstmInputs& inputs, ops::MlstmForm form, int64_t chunk_size, ops::MlstmState* cell) {
  const ops::MlstmState initial = cell ? *cell : ops::MlstmState{};
  if (form == ops::MlstmForm::parallel) {
    if (cell) throw ValueError("student: the parallel form of the mLSTM takes no state: use form = chunkwise");
    return ops::mlstm_parallel(inputs);
  }
  ops::MlstmOutput out;
  if (form == ops::MlstmForm::recurrent) {
    if (inputs.v_BSHV.requires_grad()) throw ValueError("student: the recurrent form of the mLSTM has no gradient: use form = chunkwise");
    out = ops::mlstm_recurrent(inputs, initial);
  } else {
    out = ops::mlstm_chunkwise(inputs, chunk_size, initial, /*returns_state=*/cell != nullptr);
  }
  if (cell) *cell = std::move(out.state);
  return std::move(out.h_BSHV);
}

}  // namespace distil_xlstm::student
