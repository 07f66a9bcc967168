// The parameters of a converted layer: their names, shapes and first values, and what of them is copied from the teacher
// (docs/convert.md). Letters: D width of the stream, H heads of K channels, E = H K, T = 3 E, M = F / 2 of the F features of a head, J
// taps, I width of the feed-forward.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "nn/language_model.h"
#include "nn/matrix.h"
#include "student/convert/config.h"
#include "student/parameter.h"

namespace distil_xlstm::student {

// What every layer has beside its mixer, by its names; undefined where the teacher has none.
struct LayerWeights {
  Tensor input_norm_D, o_DE, o_bias_D, mlp_norm_D, gate_up_2ID, gate_up_bias_2I, down_DI, down_bias_D;

  template <typename Visit>
  void for_each(const Visit& visit) {
    visit("input_layernorm.weight", input_norm_D);
    visit("self_attn.o_proj.weight", o_DE);
    visit("self_attn.o_proj.bias", o_bias_D);
    visit("post_attention_layernorm.weight", mlp_norm_D);
    visit("mlp.gate_up_proj.weight", gate_up_2ID);
    visit("mlp.gate_up_proj.bias", gate_up_bias_2I);
    visit("mlp.down_proj.weight", down_DI);
    visit("mlp.down_proj.bias", down_bias_D);
  }
};

// What a layer with one of the cells of cells.h, or with the large block, has beside that; undefined where the teacher or the
// configuration has none.
struct CellWeights {
  Tensor qkv_TD, qkv_bias_T, q_norm_K, k_norm_K;
  Tensor conv_TJ, feature_q_HKM, feature_k_HKM;
  // Of the gate that lets a token into the state (mLSTM: exponential; gated delta rule: how much of what is there it overwrites), and of
  // the forget gate.
  Tensor input_gate_HD, input_gate_bias_H, forget_gate_HD, forget_gate_bias_H, output_gate_ED, output_gate_bias_E;
  Tensor head_norm_E;

  template <typename Visit>
  void for_each(const Visit& visit) {
    visit("self_attn.qkv_proj.weight", qkv_TD);
    visit("self_attn.qkv_proj.bias", qkv_bias_T);
    visit("self_attn.q_norm.weight", q_norm_K);
    visit("self_attn.k_norm.weight", k_norm_K);
    visit("mixer.conv.weight", conv_TJ);
    visit("mixer.feature_q.weight", feature_q_HKM);
    visit("mixer.feature_k.weight", feature_k_HKM);
    visit("mixer.igate.weight", input_gate_HD);
    visit("mixer.igate.bias", input_gate_bias_H);
    visit("mixer.fgate.weight", forget_gate_HD);
    visit("mixer.fgate.bias", forget_gate_bias_H);
    visit("mixer.ogate.weight", output_gate_ED);
    visit("mixer.ogate.bias", output_gate_bias_E);
    visit("mixer.head_norm.weight", head_norm_E);
  }
};

// The last tap 1, the others 0: a convolution that begins as none.
Initializer identity_taps(int64_t taps);

// Keys or values of groups, once for each of their queries' heads: [G K, ...] -> [H K, ...].
Tensor for_each_query(const Tensor& x, int64_t groups, int64_t repeats);

// `product`: the weight as products take it (MixerCall::products), or undefined.
nn::Matrix matrix_of(const Tensor& weight, const Tensor& product);

// u W^T + b; `bias` may be undefined.
Tensor projected(const nn::MatrixInput& u, const Tensor& weight, const Tensor& product, const Tensor& bias);

// Depthwise and causal, each document by itself; x as it is without taps. `tail_BJF`, unless null, holds the inputs before the first, and
// takes the last.
Tensor convolved(const Tensor& x_BSF, const Tensor& taps_FJ, const Tensor& is_start_BS, Tensor* tail_BJF);

// Puts parameters together. What is a factor of a large product has its type, and decays.
class SpecList {
 public:
  SpecList& add(std::string name, Shape shape, std::string group, bool is_product, std::string start,
                Initializer initialize = constant(0.0));
  // `name`.weight [out, in] and, where there is one, `name`.bias [out].
  SpecList& add_linear(const std::string& name, int64_t out, int64_t in, const std::string& group, bool has_bias,
                       const std::string& start = "copied");
  [[nodiscard]] std::vector<ParameterSpec>& all() { return specs_; }

 private:
  std::vector<ParameterSpec> specs_;
};

// Of one layer, in their stored order: its norm, those of its mixer, its output projection and feed-forward. Groups: "norm", "attention"
// (q, k, v, o), "mixer" (what is new) and "feed_forward".
std::vector<ParameterSpec> layer_parameters(const ConvertConfig& config, SpecList mixer);

// q, k, v of every head in one matrix, and the norms on q and k where the teacher has them. `start_of_values`: where they are not copied as
// they are, for people.
SpecList projection_parameters(const ConvertConfig& config, const std::string& start_of_values = "");

// Of the mixer of a layer with a cell.
SpecList cell_parameters(const ConvertConfig& config);

// "model.layers.3."
std::string convert_layer_prefix(int64_t layer);

// Fills the parameters that start from the teacher, which are all but "mixer.": grouped keys and values repeated where the parameter has
// a head of them for each query's; q, k, v and gate, up joined. `parameters` are those of the whole student by their full names. Throws
// DataError where the teacher lacks one.
void copy_from_teacher(const ConvertConfig& config, const nn::LanguageModel& teacher, NamedTensors& parameters);

}  // namespace distil_xlstm::student
