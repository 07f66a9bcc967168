// The operations of xLSTM as plain loops over the formulas, in double: what every faster kernel is compared with.
// All arrays are row-major in the order of the letters of their suffix: B batch, S sequence, H heads, G gates (i f z o), K key or unit,
// V value, F features, J = K - 1. is_start_BS may be null: no row is reset. States are read and left updated in place.
#pragma once

#include <cstdint>

namespace distil_xlstm::kernels::reference {

struct SlstmSizes {
  int64_t B, S, H, K;
};
struct SlstmStateView {
  double *hidden_BHK, *cell_BHK, *normalizer_BHK, *stabilizer_BHK;
};
// xLSTM v1's sLSTM cell over time, with the rule for an empty normalizer per element (docs/mathematics.md 2).
void slstm(const SlstmSizes& sizes, const double* wx_BSHGK, const double* r_HKGK, const double* bias_HGK, const uint8_t* is_start_BS,
           SlstmStateView state, double* y_BSHK);

struct MlstmSizes {
  int64_t B, S, H, K, V;
};
struct MlstmInputsView {
  const double *q_BSHK, *k_BSHK, *v_BSHV, *igate_BSH, *fgate_BSH;
  const uint8_t* is_start_BS;
};
struct MlstmStateView {
  double *cell_BHKV, *normalizer_BHK, *stabilizer_BH;
};
// xLSTM v1's mLSTM step, token by token (docs/mathematics.md 3).
void mlstm(const MlstmSizes& sizes, const MlstmInputsView& inputs, MlstmStateView state, double* h_BSHV);

struct DeltaRuleSizes {
  int64_t B, S, H, K, V;
};
struct DeltaRuleInputsView {
  const double *q_BSHK, *k_BSHK, *v_BSHV, *igate_BSH, *fgate_BSH;
  const uint8_t* is_start_BS;
};
// The gated delta rule, token by token (docs/mathematics.md 11).
void delta_rule(const DeltaRuleSizes& sizes, const DeltaRuleInputsView& inputs, double* cell_BHKV, double* h_BSHV);

struct ConvSizes {
  int64_t B, S, F, K;
};
// Depthwise causal convolution and SiLU (docs/mathematics.md 1); state_BJF holds the K - 1 inputs before the first token, then those before
// the next.
void causal_conv_silu(const ConvSizes& sizes, const double* x_BSF, const double* weight_FK, const double* bias_F,
                      const uint8_t* is_start_BS, double* state_BJF, double* y_BSF);

// LayerNorm of num_groups contiguous groups of each row, times (1 + weight) (docs/mathematics.md 1).
void residual_layer_norm(int64_t num_rows, int64_t num_groups, int64_t group_width, const double* x, const double* weight, double eps,
                         double* y);

void rms_norm(int64_t num_rows, int64_t width, const double* x, const double* weight, double eps, double* y);

}  // namespace distil_xlstm::kernels::reference
