// What the operations on CPU tensors share: views of memory for the kernels of kernels/cpu, their tasks spread over LibTorch's threads.
#pragma once

#include <ATen/Parallel.h>

#include "kernels/cpu/kernels.h"
#include "ops/profiled.h"
#include "ops/tensor.h"

namespace distil_xlstm::ops {

using kernels::cpu_kernels;

// Calls f(T{}) with the tensor's type to compute in.
template <typename F>
void with_type(const Tensor& x, const F& f) {
  x.scalar_type() == at::kDouble ? f(double{}) : f(float{});
}

template <typename T>
T* data(const Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<T>() : nullptr;
}
inline const uint8_t* starts(const Tensor& is_start_BS) {
  return is_start_BS.defined() ? is_start_BS.const_data_ptr<uint8_t>() : nullptr;
}

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Runs kernel(begin, end, workspace) over all tasks, each call with memory of its own.
template <typename T, typename F>
void run_tasks(int64_t tasks, int64_t workspace_elements, const F& kernel) {
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const Tensor workspace = at::empty({workspace_elements}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
    kernel(begin, end, workspace.mutable_data_ptr<T>());
  });
}

}  // namespace distil_xlstm::ops
