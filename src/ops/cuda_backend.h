// Kernels for CUDA tensors that libdistil_xlstm_cuda.so registers when it is opened, all of them together; without it the tensor operations
// of ops/*_aten.cpp run instead.
#pragma once

#include "ops/blockdiag_forms.h"
#include "ops/causal_conv_forms.h"
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
// h and their gradients as bfloat16 or float16 only.
struct CudaBackend {
  decltype(&slstm_forward_aten) slstm_forward = nullptr;
  decltype(&slstm_backward_aten) slstm_backward = nullptr;
  decltype(&causal_conv_forward_aten) causal_conv_forward = nullptr;
  decltype(&causal_conv_backward_aten) causal_conv_backward = nullptr;
  decltype(&layer_norm_forward_aten) layer_norm_forward = nullptr;
  decltype(&layer_norm_backward_aten) layer_norm_backward = nullptr;
  // x and weight contiguous and of one type; rows of at most max_rms_norm_vectors 16-byte vectors, or values where those do not fit.
  decltype(&rms_norm_cpu) rms_norm = nullptr;
  Tensor (*swiglu)(const Tensor& gate_up) = nullptr;  // contiguous
  // x and weight contiguous and of one type; rows of whole 16-byte vectors, at most max_fp8_vectors.
  Fp8Rows (*fp8_rows)(Fp8Source source, const Tensor& x, const Tensor& weight, double eps) = nullptr;
  decltype(&rotate_) rotate = nullptr;  // channels of a head contiguous
  decltype(&qkv_forward_aten) qkv_forward = nullptr;
  decltype(&qkv_backward_aten) qkv_backward = nullptr;
  decltype(&gated_activation_aten) gated_activation = nullptr;
  decltype(&gated_activation_backward_aten) gated_activation_backward = nullptr;
  decltype(&skip_gate_aten) skip_gate = nullptr;
  decltype(&skip_gate_backward_aten) skip_gate_backward = nullptr;
  // Logits in float32, bfloat16 or float16; rows 16-byte aligned.
  decltype(&head_loss_tile_aten) head_loss_tile = nullptr;
  // q, k and v all in bfloat16 or all in float16.
  decltype(&mlstm_chunkwise_aten) mlstm_chunkwise = nullptr;
  decltype(&mlstm_backward_aten) mlstm_backward = nullptr;
  int64_t max_head_width = 0, max_taps = 0, max_rms_norm_vectors = 0, max_fp8_vectors = 0;
};

// The one table of the process.
CudaBackend& cuda_backend();

// Whether the kernels serve this activation: on CUDA where their library is open, which DISTIL_XLSTM_KERNELS=plain leaves shut.
bool has_cuda_kernels(const Tensor& x);
// The type to hand an activation over in: its own where the kernels convert, else the type to compute in.
at::ScalarType activation_type(const Tensor& x);

// What the library exports under the name kCudaRegisterSymbol: fills the table it is given. It takes the table as it was when the library
// was built; `interface` (DX_CUDA_INTERFACE, a digest of this folder's headers) says which: false, and nothing done, where it differs.
using CudaRegister = bool (*)(CudaBackend*, const char* interface);
inline constexpr const char* kCudaRegisterSymbol = "distil_xlstm_register_kernels";

}  // namespace distil_xlstm::ops
