// What the kernels' checks have in common: errors that end the program, device memory, values as a type holds them.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "kernels/cuda/convert.cuh"

#define CHECK_CUDA(call)                                                                     \
  do {                                                                                       \
    const cudaError_t error_ = (call);                                                       \
    if (error_ != cudaSuccess) {                                                             \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
      std::exit(1);                                                                          \
    }                                                                                        \
  } while (0)

namespace distil_xlstm::kernels::cuda {

inline size_t size_of(Type type) {
  return type == Type::float32 ? 4 : 2;
}
inline const char* name_of(Type type) {
  return type == Type::float32 ? "f32" : type == Type::bfloat16 ? "bf16" : "f16";
}

inline double rounded(double x, Type type) {
  const auto f = float(x);
  return type == Type::float32    ? f
         : type == Type::bfloat16 ? double(__bfloat162float(__float2bfloat16(f)))
                                  : double(__half2float(__float2half(f)));
}

struct Buffer {
  explicit Buffer(size_t bytes) : bytes(bytes) { CHECK_CUDA(cudaMalloc(&data, std::max<size_t>(bytes, 16))); }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  void* data = nullptr;
  size_t bytes;
};

}  // namespace distil_xlstm::kernels::cuda
