// What the launch functions of this folder share. No LibTorch here: kernels compile alone, and fast.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace distil_xlstm::kernels::cuda {

// Type of activations in memory; arithmetic and states are float.
enum class Type { float32, bfloat16, float16 };

}  // namespace distil_xlstm::kernels::cuda
