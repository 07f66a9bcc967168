// mLSTM cell: the same map in three forms (docs/mathematics.md 3, 4). Letters: B batch, S sequence, H heads, K query/key head width,
// V value head width.
#pragma once

#include "ops/gated_inputs.h"

namespace distil_xlstm::ops {

// State between tokens, float32 (float64 when the inputs are), k scaled by 1/sqrt(K) inside C and n (v1's convention). Undefined: zeros.
struct MlstmState {
  Tensor cell_BHKV;       // C
  Tensor normalizer_BHK;  // n
  Tensor stabilizer_BH;   // m
};

struct MlstmOutput {
  Tensor h_BSHV;  // dtype of v
  MlstmState state;
};

enum class MlstmForm { parallel, chunkwise, recurrent };

using MlstmInputs = GatedInputs;  // of every form

// Chunkwise form (docs/mathematics.md 4, exact backward with the denominator's gradient and the state's Gamma term), any S, any chunk_size
// >= 1. Differentiable in all float inputs and the initial state, also through the final state, which is left undefined, and on a GPU not
// written, where returns_state is false.
MlstmOutput mlstm_chunkwise(const MlstmInputs& inputs, int64_t chunk_size, const MlstmState& initial = {}, bool returns_state = true);

// Token by token (docs/mathematics.md 3, m_0 = 0 as in the package's step). No gradient: for decoding and as a reference.
MlstmOutput mlstm_recurrent(const MlstmInputs& inputs, const MlstmState& initial = {});

// Quadratic form with the package's stabiliser (docs/mathematics.md 3), plain differentiable ATen ops: a test oracle. Takes no state.
Tensor mlstm_parallel(const MlstmInputs& inputs);

}  // namespace distil_xlstm::ops
