// The mLSTM's chunkwise form on CUDA (docs/mathematics.md 4) with tensor cores. Letters: B batch, S sequence, H heads, K query/key width, V
// value width (any widths; 8 to 512 are tested). Inside, chunks of kMlstmChunk tokens; long sequences go in segments of chunks, so that the
// workspace is bounded whatever S is. Sums and states are float; products take the inputs' 2-byte type. Deterministic.
#pragma once

#include <cstddef>

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

inline constexpr int kMlstmChunk = 64;
inline constexpr size_t kMlstmWorkspaceGoal = size_t(2) << 30;  // bytes; one chunk of every head of every row is the least

// What a token's read-out is divided by, with r the sum of its weights in the frame of its stabilizer mu:
//   bounded    max(|r|, exp(-mu)) + 1e-6    xLSTM (docs/mathematics.md 3)
//   plain_sum  max(r, 1e-6)                 converted attention (conversion.md 1); here mu is the largest exponent among the tokens seen.
//   An
//                                           empty initial state must come with a stabilizer of kMlstmEmptyStabilizer, not 0.
enum class MlstmNormalizer { bounded, plain_sum };
inline constexpr float kMlstmEmptyStabilizer = -1e30f;

struct MlstmInputs {
  Type type;  // of q, k, v, h and their gradients: bfloat16 or float16
  MlstmNormalizer normalizer;
  int B, S, H, K, V;
  const void *q_BSHK, *k_BSHK, *v_BSHV;                                             // k not scaled
  const float *igate_BSH, *fgate_BSH;                                               // pre-activations
  const uint8_t* is_start_BS;                                                       // or null; 1: the state is empty before this token
  const float *initial_cell_BHKV, *initial_normalizer_BHK, *initial_stabilizer_BH;  // all, or null: an empty state
  int segment_chunks;                                                               // chunks in flight at once; 0: by kMlstmWorkspaceGoal
};

struct MlstmForward {
  MlstmInputs inputs;
  void* h_BSHV;
  float *cell_BHKV, *normalizer_BHK, *stabilizer_BH;  // the final state: all, or all null
  void* workspace;                                    // 256-byte aligned
};
// Bytes that the call needs, given everything but the workspace.
size_t mlstm_forward_workspace(const MlstmForward& x);
cudaError_t mlstm_forward(const MlstmForward& x, cudaStream_t stream);

struct MlstmBackward {
  MlstmInputs inputs;
  const void *h_BSHV, *grad_h_BSHV;
  const float *grad_cell_BHKV, *grad_normalizer_BHK;  // of the final state; null: zeros
  void *grad_q_BSHK, *grad_k_BSHK, *grad_v_BSHV;
  float *grad_igate_BSH, *grad_fgate_BSH;
  float *grad_initial_cell_BHKV, *grad_initial_normalizer_BHK, *grad_initial_stabilizer_BH;  // all, or all null
  void* workspace;
};
size_t mlstm_backward_workspace(const MlstmBackward& x);
cudaError_t mlstm_backward(const MlstmBackward& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
