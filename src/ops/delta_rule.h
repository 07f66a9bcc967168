// Gated delta rule: a linear attention that writes what its state does not yet answer (docs/mathematics.md 11). Letters: B batch,
// S sequence, H heads, K key width (of the features), V value width.
#pragma once

#include "ops/gated_inputs.h"

namespace distil_xlstm::ops {

// State between tokens, float32 (float64 when the inputs are). Undefined: zeros.
struct DeltaRuleState {
  Tensor cell_BHKV;  // C
};

struct DeltaRuleOutput {
  Tensor h_BSHV;  // dtype of v
  DeltaRuleState state;
};

// The input gate is the write strength beta; it and the decay are sigmoids. Nothing here scales q or k. Keys of at most unit length keep
// the state bounded: a token then takes away no more than the state holds along its key.
using DeltaRuleInputs = GatedInputs;

// Chunk by chunk, with a triangular solve inside each; any S, any chunk_size >= 1, which the output does not depend on. Differentiable in
// all float inputs and the initial state, also through the final state, which is left undefined where returns_state is false.
DeltaRuleOutput delta_rule_chunkwise(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial = {},
                                     bool returns_state = true);

// Token by token. No gradient: for decoding and as a reference.
DeltaRuleOutput delta_rule_recurrent(const DeltaRuleInputs& inputs, const DeltaRuleState& initial = {});

}  // namespace distil_xlstm::ops
