// Kernels for CUDA tensors that libdistil_xlstm_cuda.so registers when it is opened, all of them together; without it the tensor operations
// of ops/*_aten.cpp run instead.
#pragma once

#include "ops/blockdiag_forms.h"
#include "ops/causal_conv_forms.h"
#include "ops/delta_rule_forms.h"
#include "ops/feature_map_forms.h"
#include "ops/fp8.h"
#include "ops/gated_forms.h"
#include "ops/head_loss_tile.h"
#include "ops/mlstm_forms.h"
#include "ops/norm_forms.h"
#include "ops/rotary.h"
#include "ops/slstm_forms.h"

namespace distil_xlstm::ops {

// What fp8_rows turns into fp8: x, swiglu(x) or rms_norm(x, weight).
enum class Fp8Source { values, swiglu, rms_norm };

// These take activations (wx, x, y and their gradients) as float32, bfloat16 or float16, and the rest as float32. The mLSTM's take q, k, v,
// h and their gradients as bfloat16 or float16 only, and so do the delta rule's.
struct CudaBackend {
  decltype(&slstm_forward_aten) slstm_forward = nullptr;
  decltype(&slstm_backward_aten) slstm_backward = nullptr;
  decltype(&causal_conv_forward_aten) causal_conv_forward = nullptr;
  // grad_residual, as x, or undefined: is added to the gradient of x.
  CausalConvBackward (*causal_conv_backward)(const Tensor& grad_y_BSF, const Tensor& grad_state_BJF, const Tensor& grad_residual_BSF,
                                             const Tensor& x_BSF, const Tensor& weight_FK, const Tensor& bias_F, const Tensor& initial_BJF,
                                             const Tensor& is_start_BS, bool has_silu) = nullptr;
  // x and its gradient in y's type or in float32, y and its gradient in any of theirs, everything contiguous. `added`, in y's type, or
  // undefined: the norm is of x + added. grad_residual, in x's type, or undefined: is added to the gradient of x. is_rms: RMSNorm, whose
  // factor is the weight itself; means are 0 then.
  LayerNormForward (*layer_norm_forward)(const Tensor& x_NGK, const Tensor& added_NGK, const Tensor& weight_GK, double eps,
                                         at::ScalarType y_type, bool is_rms) = nullptr;
  LayerNormBackward (*layer_norm_backward)(const Tensor& grad_y_NGK, const Tensor& grad_residual_NGK, const Tensor& x_NGK,
                                           const Tensor& weight_GK, const Tensor& mean_NG, const Tensor& rstd_NG, bool is_rms) = nullptr;
  // x and weight contiguous and of one type; rows of at most max_rms_norm_vectors 16-byte vectors, or values where those do not fit.
  // The norm and, where asked for, a copy of x.
  std::pair<Tensor, Tensor> (*rms_norm)(const Tensor& x, const Tensor& weight, double eps, bool copies) = nullptr;
  // sum += the states, all of one type and contiguous, or = them where it is undefined; at most max_summed_states.
  void (*add_states)(Tensor& sum, const std::vector<Tensor>& states) = nullptr;
  Tensor (*swiglu)(const Tensor& gate_up) = nullptr;  // contiguous, here and below
  Tensor (*swiglu_backward)(const Tensor& grad, const Tensor& gate_up) = nullptr;
  // At most max_softmax_pair logits a row.
  decltype(&softmax_pair_aten) softmax_pair = nullptr;
  decltype(&softmax_pair_backward_aten) softmax_pair_backward = nullptr;
  // Contiguous and of one type. Undefined where device, type or sizes are not the kernel's.
  Tensor (*swiglu_product)(const Tensor& x, const Tensor& weight_2IK) = nullptr;
  // x and weight contiguous and of one type; rows of whole 16-byte vectors, at most max_fp8_vectors.
  Fp8Rows (*fp8_rows)(Fp8Source source, const Tensor& x, const Tensor& weight, double eps) = nullptr;
  decltype(&rotate_) rotate = nullptr;  // channels of a head contiguous
  decltype(&qkv_forward_aten) qkv_forward = nullptr;
  // grad_residual, as c, or undefined: is added to the gradient of c.
  QkvBackward (*qkv_backward)(const std::array<Tensor, 3>& grad_NF, const Tensor& grad_residual_NF, const Tensor& c_NF, const Tensor& x_NF,
                              const QkvMaps& maps) = nullptr;
  decltype(&gated_activation_aten) gated_activation = nullptr;
  decltype(&gated_activation_backward_aten) gated_activation_backward = nullptr;
  decltype(&skip_gate_aten) skip_gate = nullptr;
  decltype(&skip_gate_backward_aten) skip_gate_backward = nullptr;
  // Logits in float32, bfloat16 or float16; rows 16-byte aligned.
  decltype(&head_loss_tile_aten) head_loss_tile = nullptr;
  // parts_NPGR, bfloat16 and contiguous, from float32 [N, R] of both gates; sums_NPGH and biases float32 (kernels/cuda/gate_parts.h).
  void (*split_gates)(const Tensor& input_NR, const Tensor& forget_NR, const Tensor& parts_NPGR) = nullptr;
  std::pair<Tensor, Tensor> (*sum_gate_parts)(const Tensor& sums_NPGH, const Tensor& input_bias_H, const Tensor& forget_bias_H) = nullptr;
  // q, k and v all in bfloat16 or all in float16.
  MlstmOutput (*mlstm_chunkwise)(const MlstmInputs& inputs, const MlstmState& initial, bool returns_state) = nullptr;
  decltype(&mlstm_backward_aten) mlstm_backward = nullptr;
  // h alone: q, k and v all in bfloat16 or all in float16, of a device and widths that delta_rule_serves says yes to. `kept` becomes what
  // the backward reads beside the inputs. An undefined initial state is zeros.
  bool (*delta_rule_serves)(const Tensor& q_BSHK, const Tensor& v_BSHV) = nullptr;
  Tensor (*delta_rule_chunkwise)(const DeltaRuleInputs& inputs, const DeltaRuleState& initial, Tensor& kept) = nullptr;
  DeltaRuleBackward (*delta_rule_backward)(const DeltaRuleInputs& inputs, const DeltaRuleState& initial, const Tensor& kept,
                                           const Tensor& grad_h_BSHV) = nullptr;
  int64_t max_head_width = 0, max_taps = 0, max_rms_norm_vectors = 0, max_fp8_vectors = 0, max_summed_states = 0, max_softmax_pair = 0;
  const char* targets = "";  // what the library is compiled for (ops/cuda_targets.h)
  uint64_t devices = 0;      // bit i: it has code for cuda:i
};

// The one table of the process.
CudaBackend& cuda_backend();

// Whether the kernels serve this activation: on CUDA where their library is open, which DISTIL_XLSTM_KERNELS=plain leaves shut, and has
// code for the device.
bool has_cuda_kernels(const Tensor& x);
// The type to hand an activation over in: its own where the kernels convert, else the type to compute in.
at::ScalarType activation_type(const Tensor& x);

// What the library exports under the name kCudaRegisterSymbol: fills the table it is given. It takes the table as it was when the library
// was built; `interface` (DX_CUDA_INTERFACE, a digest of this folder's headers) says which: false, and nothing done, where it differs.
using CudaRegister = bool (*)(CudaBackend*, const char* interface);
inline constexpr const char* kCudaRegisterSymbol = "distil_xlstm_register_kernels";

}  // namespace distil_xlstm::ops
