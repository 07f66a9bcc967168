// Learned features of converted attention on CUDA (docs/convert.md): pairs of softmaxes of rows of logits. Letters: R rows, M logits of a
// row, F = 2 M.
#pragma once

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

inline constexpr int kSoftmaxPairMaxWidth = 1024;  // M

struct SoftmaxPair {
  Type logits_type, features_type;  // the gradients have the types of what they are of
  int64_t R;
  int M;
  bool is_length;  // `scale` is the length of both halves together, else the sum of each
  float scale;
  const void* logits_RM;  // forward only
  void* features_RF;      // [softmax(z), softmax(-z)], scaled: written by forward, read by backward
  const void* grad_RF;    // backward only
  void* grad_RM;          // backward only
};
cudaError_t softmax_pair_forward(const SoftmaxPair& x, cudaStream_t stream);
cudaError_t softmax_pair_backward(const SoftmaxPair& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
