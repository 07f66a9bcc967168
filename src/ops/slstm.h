// sLSTM cell over time: docs/mathematics.md 2. Letters: B batch, S sequence, H heads, G = 4 gates in the order
// input, forget, cell input, output (i f z o), K head width.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// The recurrent state between tokens; all [B, H, K], float32 (float64 when the inputs are). Undefined tensors mean zeros.
struct SlstmState {
  Tensor hidden_BHK;      // y, the gated output before the group norm
  Tensor cell_BHK;        // c
  Tensor normalizer_BHK;  // n
  Tensor stabilizer_BHK;  // m
};

struct SlstmOutput {
  Tensor y_BSHK;  // dtype of wx
  SlstmState state;
};

// y of the recurrence with gate pre-activations wx + R y + b. Differentiable in wx, r, bias and the initial state, also through the
// final state (gradients of stabilizer_BHK are zero: the output does not depend on m).
//   wx_BSHGK      float32, float64, bfloat16 or float16
//   r_HKGK        recurrent weights [head][in][gate][out], the canonical layout
//   bias_HGK
//   is_start_BS   uint8 or undefined: 1 resets the row's state to zero before this token
// States and point-wise arithmetic are float32 (float64 for float64 inputs). CPU: vectorised loops, threads over (batch tile, head).
// Throws ShapeError.
SlstmOutput slstm_scan(const Tensor& wx_BSHGK, const Tensor& r_HKGK, const Tensor& bias_HGK, const SlstmState& initial = {},
                       const Tensor& is_start_BS = {});

}  // namespace distil_xlstm::ops
