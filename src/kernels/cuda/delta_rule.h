// The gated delta rule's chunkwise form on CUDA (docs/mathematics.md 11, docs/kernels/delta_rule.md) with tensor cores. Letters: B batch,
// S sequence, H heads, K key width, V value width. Inside, chunks of kDeltaChunk tokens whatever S is. Sums, gates and the states that come
// in and go out are float; products take the inputs' 2-byte type. Deterministic.
#pragma once

#include <cstddef>

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

inline constexpr int kDeltaChunk = 64;
// Whether there are kernels for these widths, and the device has the shared memory that they need (Hopper and the A100 have).
bool delta_rule_serves(int K, int V, int device);

struct DeltaRuleInputs {
  Type type;  // of q, k, v, h and their gradients: bfloat16 or float16
  int B, S, H, K, V;
  const void *q_BSHK, *k_BSHK, *v_BSHV;  // 16-byte aligned, as all of their type
  const float *igate_BSH, *fgate_BSH;    // pre-activations
  const uint8_t* is_start_BS;            // or null; 1: the state is empty before this token
  const float* initial_cell_BHKV;        // or null: an empty state
};

struct DeltaRuleForward {
  DeltaRuleInputs inputs;
  void* h_BSHV;
  float* cell_BHKV;  // the final state, or null
  void* kept;        // 256-byte aligned; the backward reads it
};
// Bytes of `kept`.
size_t delta_rule_kept(const DeltaRuleInputs& x);
cudaError_t delta_rule_forward(const DeltaRuleForward& x, cudaStream_t stream);

struct DeltaRuleBackward {
  DeltaRuleInputs inputs;
  void* kept;  // as the forward left it
  const void* grad_h_BSHV;
  const float* grad_cell_BHKV;  // of the final state; null: zeros
  void *grad_q_BSHK, *grad_k_BSHK, *grad_v_BSHV;
  float *grad_igate_BSH, *grad_fgate_BSH;
  float* grad_initial_cell_BHKV;  // or null
  void* workspace;                // 256-byte aligned
};
size_t delta_rule_backward_workspace(const DeltaRuleInputs& x);
cudaError_t delta_rule_backward(const DeltaRuleBackward& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
