// CPU kernels of the mixers: compiled once per instruction set from the .inc files of this folder and chosen at run time.
// Every kernel works on the tasks [begin, end) of its operation; tasks are independent, so callers spread them over threads. Workspace:
// `..._workspace` elements of T, 64-byte aligned, one per call in flight. T is float or double. Arrays are row-major in the order of their
// letters (kernels/reference/reference.h has the equations): B batch, S sequence, H heads, G gates, K key or unit, V value, F features.
#pragma once

#include <cstdint>
#include <vector>

namespace distil_xlstm::kernels {

inline constexpr int kSlstmSaved = 7;  // i', f', z, o, sigmoid(-p_f), c, n per token and unit

template <typename T>
struct SlstmForwardArgs {
  int64_t B, S, H, K;
  int64_t tile_rows;  // a task is one head of this many rows of the batch: H * ceil(B / tile_rows) tasks
  const T *wx_BSHGK, *r_HKGK, *bias_HGK;
  const uint8_t* is_start_BS;  // or null
  const T* initial_hidden_BHK;
  T *hidden_BHK, *cell_BHK, *normalizer_BHK,
      *stabilizer_BHK;  // hidden: written; the others hold the initial state and end with the final one
  T* y_BSHK;
  T* saved_BSHXK;  // or null
};

template <typename T>
struct SlstmBackwardArgs {
  int64_t B, S, H, K;
  int64_t tile_rows;
  const T *grad_y_BSHK, *y_BSHK, *saved_BSHXK, *r_HKGK;
  const T *initial_cell_BHK, *initial_normalizer_BHK;
  const uint8_t* is_start_BS;
  T *grad_hidden_BHK, *grad_cell_BHK, *grad_normalizer_BHK;  // hold the final state's gradients, end with the initial state's
  T* grad_wx_BSHGK;
};

// Tasks: B * H. The state is read from initial_* and written to the others; they may be the same arrays in the recurrent form only.
template <typename T>
struct MlstmForwardArgs {
  int64_t B, S, H, K, V, L;  // L: chunk size
  const T *q_BSHK, *k_BSHK, *v_BSHV, *igate_BSH, *fgate_BSH;
  const uint8_t* is_start_BS;
  const T *initial_cell_BHKV, *initial_normalizer_BHK, *initial_stabilizer_BH;
  T *cell_BHKV, *normalizer_BHK, *stabilizer_BH;
  T* h_BSHV;
};

template <typename T>
struct MlstmBackwardArgs {
  MlstmForwardArgs<T> forward;  // cell, normalizer, stabilizer unused; h is read
  const T *grad_h_BSHV, *grad_final_cell_BHKV, *grad_final_normalizer_BHK;
  T *grad_q_BSHK, *grad_k_BSHK, *grad_v_BSHV, *grad_igate_BSH, *grad_fgate_BSH;
  T *grad_cell_BHKV, *grad_normalizer_BHK, *grad_stabilizer_BH;
};

// Features per task of the convolution: tasks are B * ceil(F / kConvFeatures).
inline constexpr int64_t kConvFeatures = 64;
template <typename T>
struct ConvArgs {
  int64_t B, S, F, K;
  const T *x_BSF, *weight_KF, *bias_F, *initial_BJF;  // note the order of weight_KF
  const uint8_t* is_start_BS;
  T *y_BSF, *state_BJF;
  // Backward only; weights and bias get one partial sum per row of the batch.
  const T *grad_y_BSF, *grad_state_BJF;
  T *grad_x_BSF, *grad_initial_BJF, *grad_weight_BKF, *grad_bias_BF;
};

// Tasks are blocks of `block_rows` rows; weight gradients get one partial sum per block.
template <typename T>
struct LayerNormArgs {
  int64_t N, G, K;
  int64_t block_rows;
  double eps;
  const T *x_NGK, *weight_GK;
  T *y_NGK, *mean_NG, *rstd_NG;
  const T* grad_y_NGK;
  T *grad_x_NGK, *grad_weight_PGK;
};

template <typename T>
struct CpuKernels {
  int64_t (*slstm_workspace)(int64_t K, int64_t tile_rows);
  void (*slstm_forward)(const SlstmForwardArgs<T>&, int64_t begin, int64_t end, T* workspace);
  void (*slstm_backward)(const SlstmBackwardArgs<T>&, int64_t begin, int64_t end, T* workspace);
  int64_t (*mlstm_forward_workspace)(const MlstmForwardArgs<T>&);
  int64_t (*mlstm_backward_workspace)(const MlstmForwardArgs<T>&);
  void (*mlstm_forward)(const MlstmForwardArgs<T>&, int64_t begin, int64_t end, T* workspace);
  void (*mlstm_backward)(const MlstmBackwardArgs<T>&, int64_t begin, int64_t end, T* workspace);
  void (*mlstm_recurrent)(const MlstmForwardArgs<T>&, int64_t begin, int64_t end);
  void (*conv_forward)(const ConvArgs<T>&, int64_t begin, int64_t end);
  void (*conv_backward)(const ConvArgs<T>&, int64_t begin, int64_t end, T* workspace);
  int64_t (*conv_workspace)(const ConvArgs<T>&);
  void (*layer_norm_forward)(const LayerNormArgs<T>&, int64_t begin, int64_t end);
  void (*layer_norm_backward)(const LayerNormArgs<T>&, int64_t begin, int64_t end);
  void (*rms_norm)(int64_t width, double eps, const T* x, const T* weight, T* y, int64_t begin_row, int64_t end_row);
  // Point-wise functions, for tests of their accuracy.
  void (*exp)(const T* x, T* y, int64_t n);
  void (*tanh)(const T* x, T* y, int64_t n);
  void (*sigmoid)(const T* x, T* y, int64_t n);
  void (*log_sigmoid)(const T* x, T* y, int64_t n);
};

enum class InstructionSet { baseline, avx2, avx512 };

// The sets that this processor has, best last.
std::vector<InstructionSet> supported_instruction_sets();
const char* name(InstructionSet set);

template <typename T>
const CpuKernels<T>& cpu_kernels(InstructionSet set);
// The best ones.
template <typename T>
const CpuKernels<T>& cpu_kernels();

}  // namespace distil_xlstm::kernels
