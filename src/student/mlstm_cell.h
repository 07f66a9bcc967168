// The mLSTM's cell as students run it: in the form that a call asks for, from a carried state and into it.
#pragma once

#include "ops/mlstm.h"

namespace distil_xlstm::student {

// h [B, S, H, V]. `cell`, unless null, is where the rows start from, and holds where they ended afterwards. Throws ValueError for the
// parallel form with a state and for a gradient through the recurrent one.
Tensor run_mlstm_cell(const ops::MlstmInputs& inputs, ops::MlstmForm form, int64_t chunk_size, ops::MlstmState* cell);

// Calls visit for each defined tensor.
template <typename Visit>
void for_each_tensor(ops::MlstmState& cell, const Visit& visit) {
  for (Tensor* tensor : {&cell.cell_BHKV, &cell.normalizer_BHK, &cell.stabilizer_BH}) {
    if (tensor->defined()) visit(*tensor);
  }
}

}  // namespace distil_xlstm::student
