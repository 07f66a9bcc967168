// What the cells with a matrix state read (mLSTM, gated delta rule). Letters: B batch, S sequence, H heads, K query/key head width, V value
// head width.
#pragma once

#include <initializer_list>

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// igate_BSH and fgate_BSH: pre-activations of what lets a token into the state and of what keeps it there (float32 at least); is_start_BS
// uint8 or undefined: 1 empties the row's state before this token.
struct GatedInputs {
  Tensor q_BSHK, k_BSHK, v_BSHV, igate_BSH, fgate_BSH, is_start_BS;
};

// Throws ShapeError that begins with `name` where the inputs and the initial state's matrix (or undefined) do not fit together, or do not
// lie on one device with the other tensors of the state.
void check_gated_inputs(const char* name, const GatedInputs& in, const Tensor& cell_BHKV, std::initializer_list<Tensor> other_state = {});

}  // namespace distil_xlstm::ops
