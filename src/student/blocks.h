// The two kinds of xLSTM v1 block (docs/mathematics.md 2, 3). Letters: B batch, S sequence, N = B S tokens, D width, I inner width of an
// mLSTM block, H heads, K head width.
#pragma once

#include <functional>
#include <string>
#include <variant>

#include "ops/mlstm.h"
#include "ops/slstm.h"
#include "student/config.h"

namespace distil_xlstm::student {

// Tensors of an sLSTM block. The package's names of the first two gates are swapped (docs/mathematics.md 2): slot i is fed by `fgate`, f by
// `igate`.
struct SlstmWeights {
  Tensor norm, conv_weight, conv_bias, input_gate, forget_gate, cell_gate, output_gate, recurrent, bias, group_norm;
  Tensor ffn_norm, ffn_up, ffn_up_bias, ffn_down, ffn_down_bias;

  // Calls visit(name, tensor) for each; those that the configuration leaves out stay undefined.
  template <typename Visit>
  void for_each(Visit&& visit) {
    visit("xlstm_norm.weight", norm);
    visit("xlstm.conv1d.conv.weight", conv_weight);
    visit("xlstm.conv1d.conv.bias", conv_bias);
    visit("xlstm.fgate.weight", input_gate);
    visit("xlstm.igate.weight", forget_gate);
    visit("xlstm.zgate.weight", cell_gate);
    visit("xlstm.ogate.weight", output_gate);
    visit("xlstm.slstm_cell._recurrent_kernel_", recurrent);
    visit("xlstm.slstm_cell._bias_", bias);
    visit("xlstm.group_norm.weight", group_norm);
    visit("ffn_norm.weight", ffn_norm);
    visit("ffn.proj_up.weight", ffn_up);
    visit("ffn.proj_up.bias", ffn_up_bias);
    visit("ffn.proj_down.weight", ffn_down);
    visit("ffn.proj_down.bias", ffn_down_bias);
  }
};

struct MlstmWeights {
  Tensor norm, skip, up, up_bias, q, q_bias, k, k_bias, v, v_bias, conv_weight, conv_bias;
  Tensor input_gate, input_gate_bias, forget_gate, forget_gate_bias, out_norm, down, down_bias;

  template <typename Visit>
  void for_each(Visit&& visit) {
    visit("xlstm_norm.weight", norm);
    visit("xlstm.learnable_skip", skip);
    visit("xlstm.proj_up.weight", up);
    visit("xlstm.proj_up.bias", up_bias);
    visit("xlstm.q_proj.weight", q);
    visit("xlstm.q_proj.bias", q_bias);
    visit("xlstm.k_proj.weight", k);
    visit("xlstm.k_proj.bias", k_bias);
    visit("xlstm.v_proj.weight", v);
    visit("xlstm.v_proj.bias", v_bias);
    visit("xlstm.conv1d.conv.weight", conv_weight);
    visit("xlstm.conv1d.conv.bias", conv_bias);
    visit("xlstm.mlstm_cell.igate.weight", input_gate);
    visit("xlstm.mlstm_cell.igate.bias", input_gate_bias);
    visit("xlstm.mlstm_cell.fgate.weight", forget_gate);
    visit("xlstm.mlstm_cell.fgate.bias", forget_gate_bias);
    visit("xlstm.mlstm_cell.outnorm.weight", out_norm);
    visit("xlstm.proj_down.weight", down);
    visit("xlstm.proj_down.bias", down_bias);
  }
};

// One block's tensors, handles to the student's parameters (or to copies of them in another type).
struct BlockWeights {
  std::variant<SlstmWeights, MlstmWeights> kind;

  template <typename Visit>
  void for_each(Visit&& visit) {
    std::visit([&](auto& weights) { weights.for_each(visit); }, kind);
  }
  // The same block with every defined tensor replaced by change(tensor).
  [[nodiscard]] BlockWeights transformed(const std::function<Tensor(const Tensor&)>& change) const;
  // Defined tensors in the order of for_each.
  [[nodiscard]] std::vector<Tensor> tensors() const;
};

// What a block carries from token to token; float32 except the convolution's tail, which has the type of the convolution's input.
struct BlockState {
  Tensor conv_tail_BJF;   // the last kernel size - 1 inputs
  ops::SlstmState slstm;  // of an sLSTM block
  ops::MlstmState mlstm;  // of an mLSTM block

  template <typename Visit>
  void for_each(Visit&& visit) {
    for (Tensor* tensor : {&conv_tail_BJF, &slstm.hidden_BHK, &slstm.cell_BHK, &slstm.normalizer_BHK, &slstm.stabilizer_BHK,
                           &mlstm.cell_BHKV, &mlstm.normalizer_BHK, &mlstm.stabilizer_BH}) {
      if (tensor->defined()) visit(*tensor);
    }
  }
};

struct BlockCall {
  const StudentConfig* config = nullptr;
  Tensor is_start_BS;                         // uint8 or undefined
  at::ScalarType compute_dtype = at::kFloat;  // of the matrix products
  ops::MlstmForm mlstm_form = ops::MlstmForm::chunkwise;
  const BlockWeights* products = nullptr;  // the weights as products take them, kept from step to step; null: converted where they are used
};

// The type of what enters the cells (the sLSTM's gate pre-activations; the mLSTM's q, k, v) and leaves them: bfloat16 beside float16
// products, whose range is too small for the path into the exponentials and for the mLSTM's output, which may be around 1e-5
// (docs/mathematics.md 9, points 2 and 7).
at::ScalarType cell_dtype(at::ScalarType compute_dtype);

// x_BSD, the residual stream in float32 (float64 where the parameters are) -> the same after the block. `state`, unless null, is where the
// rows start from, and holds where they ended afterwards.
Tensor forward_block(const BlockWeights& weights, const Tensor& x_BSD, const BlockCall& call, BlockState* state);

// forward_block that keeps only its input for backward and computes the rest again there.
Tensor forward_block_checkpointed(const BlockWeights& weights, const Tensor& x_BSD, const BlockCall& call, BlockState* state);

// Zeros for `batch` rows.
BlockState zero_block_state(const StudentConfig& config, int64_t block, int64_t batch, at::ScalarType compute_dtype,
                            at::TensorOptions options);

}  // namespace distil_xlstm::student
