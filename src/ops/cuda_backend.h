// Kernels for CUDA tensors that libdistil_xlstm_cuda.so registers when it is opened. Empty entries: the tensor operations of ops/*_aten.cpp
// run instead.
#pragma once

#include "ops/causal_conv_forms.h"
#include "ops/norm_forms.h"
#include "ops/slstm_forms.h"

namespace distil_xlstm::ops {

struct CudaBackend {
  decltype(&slstm_forward_aten) slstm_forward = nullptr;
  decltype(&slstm_backward_aten) slstm_backward = nullptr;
  decltype(&causal_conv_forward_aten) causal_conv_forward = nullptr;
  decltype(&causal_conv_backward_aten) causal_conv_backward = nullptr;
  decltype(&layer_norm_forward_aten) layer_norm_forward = nullptr;
  decltype(&layer_norm_backward_aten) layer_norm_backward = nullptr;
};

// The one table of the process.
CudaBackend& cuda_backend();

// What the library exports under the name kCudaRegisterSymbol: fills the table it is given.
using CudaRegister = void (*)(CudaBackend*);
inline constexpr const char* kCudaRegisterSymbol = "distil_xlstm_cuda_register";

}  // namespace distil_xlstm::ops
