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

// Tasks: B * H. As the mLSTM's.
template <typename T>
struct DeltaRuleForwardArgs {
  int64_t B, S, H, K, V, L;
  const T *q_BSHK, *k_BSHK, *v_BSHV, *igate_BSH, *fgate_BSH;
  const uint8_t* is_start_BS;
  const T* initial_cell_BHKV;
  T *cell_BHKV, *h_BSHV;
};

template <typename T>
struct DeltaRuleBackwardArgs {
  DeltaRuleForwardArgs<T> forward;  // cell and h unused
  const T *grad_h_BSHV, *grad_final_cell_BHKV;
  T *grad_q_BSHK, *grad_k_BSHK, *grad_v_BSHV, *grad_igate_BSH, *grad_fgate_BSH, *grad_cell_BHKV;
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
  bool has_silu = true;  // y is the sum alone where not
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

// y[n, h, j] = sum_k x[n, h, k] w[h, k, j]; rows of y are y_row apart and heads y_head, so that several maps can fill one array. J is a
// multiple of the table's `lanes`. Tasks are blocks of `block_rows` rows; weight gradients get one partial sum per block.
template <typename T>
struct HeadwiseArgs {
  int64_t N, H, K, J, block_rows, y_row, y_head;
  const T *x_NHK, *w_HKJ;
  T* y;  // in backward its gradient, read
  T *grad_x_NHK, *grad_w_PHKJ;
};

// Blocks of four inputs and four outputs: y[n, f] (+)= bias[f] + sum_b w[b, f] x[n, 4 (f / 4) + b]; F is a multiple of 4. Tasks are rows.
template <typename T>
struct Blockdiag4Args {
  int64_t F, x_row;  // rows of x are x_row apart
  bool accumulate;   // to y, without bias
  const T *x_NF, *w_4F, *bias_F;
  T* y_NF;
};

// grad_w[b, f] = sum_n grad[n, f] x[n, 4 (f / 4) + b]. Tasks are blocks of `block_rows` rows, with one partial sum each.
template <typename T>
struct Blockdiag4WeightArgs {
  int64_t N, F, block_rows, grad_row, x_row;
  const T *grad_NF, *x_NF;
  T* grad_w_P4F;
};

// y = (h + skip c) SiLU(z). Tasks are blocks of `block_rows` rows; skip's gradient gets one partial sum per block.
template <typename T>
struct SkipGateArgs {
  int64_t N, F, block_rows;
  const T *h_NF, *skip_F, *c_NF, *z_NF;
  T* y_NF;
  const T* grad_y_NF;
  T *grad_h_NF, *grad_skip_PF, *grad_c_NF, *grad_z_NF;
};

// Heads of at most this many channels.
inline constexpr int64_t kMaxNarrowHead = 32;
// Tasks are B * G; query head h reads key head h / (H / G). Tokens of q, k and v are `q_row`, `k_row`, `v_row` elements apart, heads K.
template <typename T>
struct AttentionArgs {
  int64_t B, S, H, G, K, q_row, k_row, v_row;
  T scale;
  const T *q, *k, *v;
  const uint8_t* is_start_BS;  // or null
  T* out_BSHK;
};

// One query a head, over S keys. Tasks are B * G groups of R heads, which share keys and values; rows of those are `..._row` elements
// apart, heads `..._head`, rows of the batch `..._batch`.
template <typename T>
struct DecodeAttentionArgs {
  int64_t S, G, R, K, k_row, k_head, k_batch, v_row, v_head, v_batch;
  T scale;
  const T *q_BHK, *k, *v;
  T* out_BHK;
};

// y = W x + b, or y += W x + b where it adds: tasks are the E rows of W, `w_row` elements apart; bias_E or null.
template <typename T>
struct MatvecArgs {
  int64_t K, w_row;
  const T *w_EK, *x_K, *bias_E;
  T* y_E;
  bool adds;
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
  int64_t (*delta_rule_forward_workspace)(const DeltaRuleForwardArgs<T>&);
  int64_t (*delta_rule_backward_workspace)(const DeltaRuleForwardArgs<T>&);
  void (*delta_rule_forward)(const DeltaRuleForwardArgs<T>&, int64_t begin, int64_t end, T* workspace);
  void (*delta_rule_backward)(const DeltaRuleBackwardArgs<T>&, int64_t begin, int64_t end, T* workspace);
  void (*delta_rule_recurrent)(const DeltaRuleForwardArgs<T>&, int64_t begin, int64_t end);
  void (*conv_forward)(const ConvArgs<T>&, int64_t begin, int64_t end);
  void (*conv_backward)(const ConvArgs<T>&, int64_t begin, int64_t end, T* workspace);
  int64_t (*conv_workspace)(const ConvArgs<T>&);
  void (*layer_norm_forward)(const LayerNormArgs<T>&, int64_t begin, int64_t end);
  void (*layer_norm_backward)(const LayerNormArgs<T>&, int64_t begin, int64_t end);
  void (*rms_norm)(int64_t width, double eps, const T* x, const T* weight, T* y, int64_t begin_row, int64_t end_row);
  // Adds to grad_weight, which holds `width` values.
  void (*rms_norm_backward)(int64_t width, double eps, const T* x, const T* weight, const T* grad_y, T* grad_x, T* grad_weight,
                            int64_t begin_row, int64_t end_row);
  // Rows of [gate, up], `width` each: y = gate sigmoid(gate) up.
  void (*swiglu)(int64_t width, const T* gate_up, T* y, int64_t begin_row, int64_t end_row);
  void (*swiglu_backward)(int64_t width, const T* grad_y, const T* gate_up, T* grad_gate_up, int64_t begin_row, int64_t end_row);
  void (*sigmoid_gate_forward)(const T* gate, const T* value, T* y, int64_t n);  // sigmoid(gate) value
  void (*sigmoid_gate_backward)(const T* grad_y, const T* gate, const T* value, T* grad_gate, T* grad_value, int64_t n);
  // Rows of M logits z: [softmax(z), softmax(-z)], 2 M features a row, each half of sum `scale`, or both together of length `scale`; and
  // the logits' gradient from the features and theirs.
  void (*softmax_pair)(int64_t M, bool is_length, double scale, const T* logits_RM, T* features_RF, int64_t begin_row, int64_t end_row);
  void (*softmax_pair_backward)(int64_t M, bool is_length, double scale, const T* grad_RF, const T* features_RF, T* grad_RM,
                                int64_t begin_row, int64_t end_row);
  int64_t lanes;  // elements of a vector
  void (*headwise_forward)(const HeadwiseArgs<T>&, int64_t begin, int64_t end);
  int64_t (*headwise_workspace)(const HeadwiseArgs<T>&);
  void (*headwise_backward)(const HeadwiseArgs<T>&, int64_t begin, int64_t end, T* workspace);
  void (*skip_gate_forward)(const SkipGateArgs<T>&, int64_t begin, int64_t end);
  void (*skip_gate_backward)(const SkipGateArgs<T>&, int64_t begin, int64_t end);
  int64_t (*attention_workspace)(const AttentionArgs<T>&);
  void (*attention)(const AttentionArgs<T>&, int64_t begin, int64_t end, T* workspace);
  int64_t (*decode_attention_workspace)(const DecodeAttentionArgs<T>&);
  void (*decode_attention)(const DecodeAttentionArgs<T>&, int64_t begin, int64_t end, T* workspace);
  void (*matvec)(const MatvecArgs<T>&, int64_t begin, int64_t end);
  // float32 only: null in the table of doubles.
  void (*blockdiag4)(const Blockdiag4Args<T>&, int64_t begin, int64_t end);
  void (*blockdiag4_weight)(const Blockdiag4WeightArgs<T>&, int64_t begin, int64_t end);
  void (*gelu_gate_forward)(const T* gate, const T* value, T* y, int64_t n);  // gelu(gate) value, gelu with the normal distribution itself
  void (*gelu_gate_backward)(const T* grad_y, const T* gate, const T* value, T* grad_gate, T* grad_value, int64_t n);
  // Point-wise functions, for tests of their accuracy.
  void (*exp)(const T* x, T* y, int64_t n);
  void (*tanh)(const T* x, T* y, int64_t n);
  void (*sigmoid)(const T* x, T* y, int64_t n);
  void (*log_sigmoid)(const T* x, T* y, int64_t n);
};

enum class InstructionSet { baseline, avx2, avx512 };

// The sets that this processor has, best last.
std::vector<InstructionSet> supported_instruction_sets();
InstructionSet best_instruction_set();  // the last of them
const char* name(InstructionSet set);

template <typename T>
const CpuKernels<T>& cpu_kernels(InstructionSet set);
// The best ones.
template <typename T>
const CpuKernels<T>& cpu_kernels();

}  // namespace distil_xlstm::kernels
