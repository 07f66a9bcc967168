// The sLSTM scan on CUDA (docs/mathematics.md 2): but for the last form, persistent blocks, one per head and tile of batch rows, walk over
// time; no grid-wide barrier. Letters: B batch, S sequence, H heads, G = 4 gates i f z o, K head width (at most 1024). Three forms:
//   - tensor cores (slstm_mma.h): bfloat16 and float16 with even K, to 128 (compute capability 8.0: a block per head) or 512 (9.0: a
//     thread-block cluster per head); R in registers and shared memory, h and dp rounded to the activations' type in the recurrent
//     products, sums and states float32.
//   - scalar: everything else below K 256. R in shared memory where it fits, else read through L2 each step; h and dp stay float32.
//   - steps: everything else. The caller multiplies by R in a product of its own for each token, a kernel does the rest.
// docs/kernels/slstm_scan.md has bytes, operations and times.
#pragma once

#include <cstddef>

#include "kernels/cuda/types.h"

namespace distil_xlstm::kernels::cuda {

inline constexpr int kSlstmMaxHeadWidth = 1024;
inline constexpr int kSlstmMmaMaxHeadWidth = 128;
inline constexpr int kSlstmClusterMaxHeadWidth = 512;
inline constexpr int kSlstmStepsMinHeadWidth = 256;
inline constexpr int kSlstmTileRows = 8;  // batch rows of one block of the tensor-core form

// Which form serves this type and head width on the current device; forward and backward agree.
bool slstm_uses_tensor_cores(Type type, int K);

// Whether a call of this type and head width is to go by steps. (slstm_forward and slstm_backward do it in the scalar form.)
bool slstm_takes_steps(Type type, int K);

// Size of what forward keeps for backward; the layout belongs to the form. Tensor cores: 10 bytes per token and unit, scalar: 28.
size_t slstm_saved_bytes(Type type, int B, int S, int H, int K);

// Half-precision arrays start at multiples of 16 bytes.
struct SlstmForward {
  Type type;  // of wx, r, y
  int B, S, H, K;
  const void *wx_BSHGK, *r_HKGK;
  const float* bias_HGK;
  const uint8_t* is_start_BS;  // or null
  const float* initial_hidden_BHK;
  float *hidden_BHK, *cell_BHK, *normalizer_BHK,
      *stabilizer_BHK;  // hidden: written; the others hold the initial state and end with the final one
  void* y_BSHK;
  void* saved;  // slstm_saved_bytes, 16-byte aligned; or null
};
cudaError_t slstm_forward(const SlstmForward& x, cudaStream_t stream);

struct SlstmBackward {
  Type type;  // of grad_y, y, r, grad_wx
  int B, S, H, K;
  const void *grad_y_BSHK, *y_BSHK;
  const void* saved;
  const void* r_HKGK;             // read with tensor cores
  const void* r_transposed_HGKK;  // [head][gate][out][in]; read by the scalar form, else may be null
  const float *initial_cell_BHK, *initial_normalizer_BHK;
  const uint8_t* is_start_BS;
  float *grad_hidden_BHK, *grad_cell_BHK, *grad_normalizer_BHK;  // hold the final state's gradients, end with the initial state's
  void* grad_wx_BSHGK;
  float* grad_bias_PHGK;  // with tensor cores, or null: partial sums of grad_wx, P = slstm_num_tiles(B); the scalar form leaves it alone
};
cudaError_t slstm_backward(const SlstmBackward& x, cudaStream_t stream);
int slstm_num_tiles(int B);

// One token of slstm_forward, t = 0, 1, ... S - 1. product_HBGK = h R of the token before, float32; hidden_HBK, of the type of y, receives
// what the next token's product takes: h, or 0 where a document starts there.
cudaError_t slstm_step_forward(const SlstmForward& x, int t, const float* product_HBGK, void* hidden_HBK, cudaStream_t stream);
// One token of slstm_backward, t = S - 1, ... 0. product_HBK = dp R^T of the token after, float32 (t = S - 1: not read); dp_HBGK, of the
// type of y, receives this token's. After t = 0 grad_hidden_BHK still holds the final state's: the initial one's is the last dp R^T.
cudaError_t slstm_step_backward(const SlstmBackward& x, int t, const float* product_HBK, void* dp_HBGK, cudaStream_t stream);

// What R was multiplied with at each token: y of the token before, the initial hidden state before the first, 0 where a document starts.
// dR[h,e,g,d] = sum over tokens of before[h,e] grad_wx[h,g,d].
struct SlstmHiddenBefore {
  Type type;  // of y and before
  int B, S, H, K;
  const void* y_BSHK;
  const float* initial_hidden_BHK;
  const uint8_t* is_start_BS;  // or null
  void* before_BSHK;
};
cudaError_t slstm_hidden_before(const SlstmHiddenBefore& x, cudaStream_t stream);

}  // namespace distil_xlstm::kernels::cuda
