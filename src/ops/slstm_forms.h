// The implementations behind slstm_scan: all take and give the same tensors; of those in plain loops and tensor operations any forward
// fits any backward.
#pragma once

#include "ops/slstm.h"

namespace distil_xlstm::ops {

// What backward needs per token and unit, in the order of this enum: gates i' and f' as applied, z = tanh, o = sigmoid,
// sigmoid(-p_f), and the states c and n after the token.
enum SlstmSaved : int {
  kSavedInput = 0,
  kSavedForget,
  kSavedCellInput,
  kSavedOutput,
  kSavedForgetSlope,
  kSavedCell,
  kSavedNormalizer,
  kNumSaved
};

struct SlstmForward {
  Tensor y_BSHK;
  SlstmState state;
  Tensor saved_BSHXK;  // X = kNumSaved, or bytes in the layout of a CUDA kernel, for its own backward; undefined when not asked for
};

struct SlstmBackward {
  Tensor grad_wx_BSHGK;
  SlstmState grad_initial;            // without the stabilizer
  Tensor grad_r_HKGK, grad_bias_HGK;  // float32; undefined: the caller makes them from grad_wx
};

// Everything contiguous and in the type to compute in (CUDA kernels also take wx, y and their gradients in half precision); `initial`
// defined throughout; is_start_BS uint8 or undefined.
SlstmForward slstm_forward_cpu(const Tensor& wx_BSHGK, const Tensor& r_HKGK, const Tensor& bias_HGK, const SlstmState& initial,
                               const Tensor& is_start_BS, bool save);
SlstmForward slstm_forward_aten(const Tensor& wx_BSHGK, const Tensor& r_HKGK, const Tensor& bias_HGK, const SlstmState& initial,
                                const Tensor& is_start_BS, bool save);

// grad_state holds the gradients of the final hidden, cell and normalizer states.
SlstmBackward slstm_backward_cpu(const Tensor& grad_y_BSHK, const SlstmState& grad_state, const Tensor& y_BSHK, const Tensor& saved_BSHXK,
                                 const Tensor& r_HKGK, const SlstmState& initial, const Tensor& is_start_BS);
SlstmBackward slstm_backward_aten(const Tensor& grad_y_BSHK, const SlstmState& grad_state, const Tensor& y_BSHK, const Tensor& saved_BSHXK,
                                  const Tensor& r_HKGK, const SlstmState& initial, const Tensor& is_start_BS);

}  // namespace distil_xlstm::ops
