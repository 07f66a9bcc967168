// Sums of a teacher's hidden states on CUDA, several states a pass: the float32 sum moves once for all of them.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

inline constexpr int kStateSumMax = 4;

// sum = states[0] + states[1] + ..., in float and in this order, or sum += them.
struct StateSum {
  Type type;  // of the states
  int64_t count;
  int num_states;  // at most kStateSumMax
  const void* states[kStateSumMax];
  float* sum;
  bool accumulates;
};
cudaError_t state_sum(const StateSum& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
