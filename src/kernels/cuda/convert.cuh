// Activations in memory <-> float, and the choice of a template by Type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}

template <typename T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half(x);
}

// Calls f(T{}) with the C++ type.
template <typename F>
cudaError_t with_type(Type type, const F& f) {
  switch (type) {
    case Type::float32:
      return f(float{});
    case Type::bfloat16:
      return f(__nv_bfloat16{});
    case Type::float16:
      return f(__half{});
  }
  return cudaErrorInvalidValue;
}

__device__ inline float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}
// For values that lie in memory as T: half precision needs no exact division, whose branches cost more than the memory's time.
template <typename T>
__device__ inline float sigmoid_for(float x) {
  return sizeof(T) == 4 ? sigmoid(x) : __fdividef(1.0f, 1.0f + __expf(-x));
}

}  // namespace distil_xlstm::kernels::cuda
