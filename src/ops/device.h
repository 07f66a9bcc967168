// Which device and number formats to compute with, and the CUDA part of LibTorch, opened only where it can work.
#pragma once

#include <c10/core/StreamGuard.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ops/tensor.h"

namespace distil_xlstm::ops {

struct CudaReport {
  bool is_available = false;
  std::string detail;  // device names and whether our kernels serve them, or why there is none
  std::vector<std::string>
      no_kernels;  // by GPU: why our kernels do not serve it; empty text where they do, no texts where they are not wanted
};

// Opens libtorch_cuda.so (beside libtorch_cpu.so) and libdistil_xlstm_cuda.so (beside the program), once. Must run before any tensor
// exists: ATen keeps what it finds at first use. Also makes MKL choose its vector functions while one thread runs. Never throws: without
// a driver, a GPU or CUDA's LibTorch the CPU part goes on. The variable DISTIL_XLSTM_NO_CUDA=1 leaves CUDA out, DISTIL_XLSTM_KERNELS=plain
// our kernels: tensor operations run in their place, as where the library is missing, from other sources, or has no code for the GPU.
const CudaReport& load_cuda();

// "auto" (CUDA where it is), "cpu", "cuda", "cuda:1". Throws ConfigError, also where DISTIL_XLSTM_KERNELS is neither "fast" nor "plain", or
// DeviceError when CUDA is asked for and missing (with the reason). Warns, once, where a GPU is chosen that our kernels do not serve.
at::Device parse_device(std::string_view name);

// Of a GPU, 90 for 9.0; 0 for a CPU or where it is not known.
int compute_capability(at::Device device);

// Whether products of this type have instructions of their own on a CPU (bf16: AVX512-BF16 or AMX; fp16: AVX512-FP16 or AMX-FP16; not told
// on other architectures than x86); else LibTorch emulates them. True for float32, float64 and GPUs.
bool has_products(at::ScalarType dtype, at::Device device);

// "auto", "fp32", "bf16", "fp16", and "fp64" for tests. Warns, once, where a CPU emulates the type. "auto": bf16 on GPUs that have it, fp16
// on older ones, fp32 on CPUs.
at::ScalarType parse_precision(std::string_view name, at::Device device);

std::string precision_name(at::ScalarType dtype);  // "bf16"

// While it lives, what this thread starts on a GPU goes before work of other streams that waits for a free place. Ordered with what was
// started before it and what is started after it; nothing on a CPU.
class PriorityStream {
 public:
  explicit PriorityStream(at::Device device);
  ~PriorityStream();
  PriorityStream(const PriorityStream&) = delete;
  PriorityStream& operator=(const PriorityStream&) = delete;

 private:
  std::optional<c10::StreamGuard> guard_;
};

// Waits for the device's queue (nothing on a CPU).
void synchronize(at::Device device);

// The most bytes of device memory that tensors have had in use (0 on a CPU).
int64_t peak_memory_bytes(at::Device device);

// Lets the peak begin anew; returns what tensors have in use now (0 on a CPU).
int64_t reset_peak_memory(at::Device device);

}  // namespace distil_xlstm::ops
