// The implementations behind mlstm_chunkwise and mlstm_recurrent: all take and give the same tensors.
#pragma once

#include "kernels/mlstm_constants.h"
#include "ops/mlstm.h"

namespace distil_xlstm::ops {

// How far below zero the frame of the read-out may go: exp(-frame) must stay finite (docs/mathematics.md 9, point 1). Any frame gives the
// same output.
using kernels::kMinReadoutFrame, kernels::kMlstmEps;

struct MlstmBackward {
  MlstmInputs grad_inputs;
  MlstmState grad_initial;
};

// Everything in the type to compute in, q, k, v, gates contiguous; k not yet scaled; `initial` defined throughout; is_start_BS uint8 or
// undefined. The kernels that cuda_backend() may hold take q, k, v, h and their gradients in a 2-byte type, undefined states and gradients
// of states as zeros (an undefined initial state then has no gradient), and choose their own chunks.
MlstmOutput mlstm_chunkwise_cpu(const MlstmInputs& inputs, int64_t chunk_size, const MlstmState& initial);
MlstmOutput mlstm_chunkwise_aten(const MlstmInputs& inputs, int64_t chunk_size, const MlstmState& initial);

// h_BSHV: the forward's output. grad_state: gradients of the final C and n (contiguous, defined; that of m does not count).
MlstmBackward mlstm_backward_cpu(const MlstmInputs& inputs, int64_t chunk_size, const MlstmState& initial, const Tensor& h_BSHV,
                                 const Tensor& grad_h_BSHV, const MlstmState& grad_state);
MlstmBackward mlstm_backward_aten(const MlstmInputs& inputs, int64_t chunk_size, const MlstmState& initial, const Tensor& h_BSHV,
                                  const Tensor& grad_h_BSHV, const MlstmState& grad_state);

MlstmOutput mlstm_recurrent_cpu(const MlstmInputs& inputs, const MlstmState& initial);
MlstmOutput mlstm_recurrent_aten(const MlstmInputs& inputs, const MlstmState& initial);

}  // namespace distil_xlstm::ops
