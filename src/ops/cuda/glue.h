// Glue between CUDA tensors and the kernels of kernels/cuda: NAME.cpp here is that of kernels/cuda/NAME.h. Its functions have the names
// that they have in the table (ops/cuda_backend.h), with _cuda behind them. Uses nothing of the program that opens this library but
// headers.
#pragma once

#include <ATen/ATen.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "base/error.h"
#include "kernels/cuda/types.h"
#include "ops/cuda_backend.h"

namespace distil_xlstm::ops {

namespace gpu = kernels::cuda;

inline gpu::Type type_of(at::ScalarType type) {
  switch (type) {
    case at::kBFloat16:
      return gpu::Type::bfloat16;
    case at::kHalf:
      return gpu::Type::float16;
    case at::kFloat:
      return gpu::Type::float32;
    default:
      throw ValueError("CUDA kernels: {} is none of float32, bfloat16 and float16", at::toString(type));
  }
}
inline gpu::Type type_of(const Tensor& x) {
  return type_of(x.scalar_type());
}

inline void check(cudaError_t error, const char* what, const Tensor& x) {
  if (error == cudaSuccess) return;
  throw DeviceError("{} [{}]: {}", what, fmt::join(x.sizes(), ", "), cudaGetErrorString(error));
}

inline float* floats(const Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<float>() : nullptr;
}
inline void* pointer(const Tensor& x) {
  return x.defined() ? x.mutable_data_ptr() : nullptr;
}
inline const uint8_t* starts(const Tensor& is_start_BS) {
  return is_start_BS.defined() ? is_start_BS.const_data_ptr<uint8_t>() : nullptr;
}

// Kernels that load several values at once need a tensor that starts at a multiple of 16 bytes; views of others may not.
inline Tensor aligned(const Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 ? x : x.clone();
}

// Each puts its functions, and what they are limited to, into the table.
void register_blockdiag(CudaBackend& table);
void register_causal_conv(CudaBackend& table);
void register_delta_rule(CudaBackend& table);
void register_fp8_rows(CudaBackend& table);
void register_gate_parts(CudaBackend& table);
void register_gated(CudaBackend& table);
void register_head_loss(CudaBackend& table);
void register_layer_norm(CudaBackend& table);
void register_mlstm_chunkwise(CudaBackend& table);
void register_rms_norm(CudaBackend& table);
void register_rotary(CudaBackend& table);
void register_slstm_scan(CudaBackend& table);
void register_softmax_pair(CudaBackend& table);
void register_state_sum(CudaBackend& table);
void register_swiglu_product(CudaBackend& table);

}  // namespace distil_xlstm::ops
