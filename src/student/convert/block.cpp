#include "student/convert/block.h"

#include <cmath>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "base/error.h"
#include "nn/decoder_layer.h"
#include "student/mlstm_cell.h"

namespace distil_xlstm::student {
namespace {

// A layer's parameters by their names, undefined where the teacher has none. Letters: D width of the stream, H heads of K channels, E = H
// K, M = F / 2 of the F features of a head, J taps, I width of the feed-forward.
struct Weights {
  Tensor input_norm_D;
  Tensor q_ED, q_bias_E, k_ED, k_bias_E, v_ED, v_bias_E, q_norm_K, k_norm_K;
  Tensor conv_q_EJ, conv_k_EJ, conv_v_EJ, feature_q_HKM, feature_k_HKM;
  Tensor input_gate_HD, input_gate_bias_H, forget_gate_HD, forget_gate_bias_H, output_gate_ED, output_gate_bias_E;
  Tensor o_DE, o_bias_D, mlp_norm_D, gate_up_2ID, gate_up_bias_2I, down_DI, down_bias_D;

  template <typename Visit>
  void for_each(const Visit& visit) {
    visit("input_layernorm.weight", input_norm_D);
    visit("self_attn.q_proj.weight", q_ED);
    visit("self_attn.q_proj.bias", q_bias_E);
    visit("self_attn.k_proj.weight", k_ED);
    visit("self_attn.k_proj.bias", k_bias_E);
    visit("self_attn.v_proj.weight", v_ED);
    visit("self_attn.v_proj.bias", v_bias_E);
    visit("self_attn.q_norm.weight", q_norm_K);
    visit("self_attn.k_norm.weight", k_norm_K);
    visit("mlstm.conv_q.weight", conv_q_EJ);
    visit("mlstm.conv_k.weight", conv_k_EJ);
    visit("mlstm.conv_v.weight", conv_v_EJ);
    visit("mlstm.feature_q.weight", feature_q_HKM);
    visit("mlstm.feature_k.weight", feature_k_HKM);
    visit("mlstm.igate.weight", input_gate_HD);
    visit("mlstm.igate.bias", input_gate_bias_H);
    visit("mlstm.fgate.weight", forget_gate_HD);
    visit("mlstm.fgate.bias", forget_gate_bias_H);
    visit("mlstm.ogate.weight", output_gate_ED);
    visit("mlstm.ogate.bias", output_gate_bias_E);
    visit("self_attn.o_proj.weight", o_DE);
    visit("self_attn.o_proj.bias", o_bias_D);
    visit("post_attention_layernorm.weight", mlp_norm_D);
    visit("mlp.gate_up_proj.weight", gate_up_2ID);
    visit("mlp.gate_up_proj.bias", gate_up_bias_2I);
    visit("mlp.down_proj.weight", down_DI);
    visit("mlp.down_proj.bias", down_bias_D);
  }
};

// K^(-1/4) I, so that phi(q) phi(k) begins near the attention's exp(q k / sqrt(K)); of wider maps each copy is sharper than the one before,
// and a little noise tells them apart.
Initializer feature_start(int64_t heads, int64_t K, int64_t M) {
  return [=](Random& random, std::span<double> out) {
    const int64_t copies = (M + K - 1) / K;
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t m = 0; m < M; ++m) {
          double value = m % K == k ? std::pow(static_cast<double>(K), -0.25) : 0.0;
          if (copies > 1) value = (value + 0.02 * random.normal()) * linspace_at(1.0, 2.0, m / K, copies);
          out[static_cast<size_t>((h * K + k) * M + m)] = value;
        }
      }
    }
  };
}

// The last tap 1, the others 0: the convolution begins as none.
Initializer identity_taps(int64_t taps) {
  return [=](Random&, std::span<double> out) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = (static_cast<int64_t>(i) + 1) % taps == 0 ? 1.0 : 0.0;
  };
}

std::vector<ParameterSpec> parameters_of(const ConvertConfig& config) {
  const auto& decoder = config.decoder;
  const int64_t D = decoder.hidden_size, E = config.inner_size(), H = decoder.num_heads, K = decoder.head_dim,
                I = decoder.intermediate_size;
  const int64_t M = config.feature_size() / 2, J = config.conv1d_kernel_size;
  std::vector<ParameterSpec> specs;
  // What is a factor of a large product has its type, and decays.
  const auto add = [&](std::string name, Shape shape, std::string group, bool is_product, Initializer initialize = constant(0.0)) {
    specs.push_back({.name = std::move(name),
                     .shape = std::move(shape),
                     .initialize = std::move(initialize),
                     .group = std::move(group),
                     .decays = is_product,
                     .product_type = is_product ? in_compute_type() : ProductType{}});
  };
  const auto add_linear = [&](const std::string& name, int64_t out, int64_t in, const std::string& group, bool has_bias) {
    add(name + ".weight", {out, in}, group, true);
    if (has_bias) add(name + ".bias", {out}, group, false);
  };
  add("input_layernorm.weight", {D}, "norm", false);
  for (const char* name : {"q_proj", "k_proj", "v_proj"})
    add_linear(std::string("self_attn.") + name, E, D, "attention", decoder.has_qkv_bias);
  if (decoder.has_qk_norm) {
    add("self_attn.q_norm.weight", {K}, "norm", false);
    add("self_attn.k_norm.weight", {K}, "norm", false);
  }
  if (J > 0) {
    for (const char* name : {"conv_q", "conv_k", "conv_v"})
      add(fmt::format("mlstm.{}.weight", name), {E, J}, "mixer", false, identity_taps(J));
  }
  for (const char* name : {"feature_q", "feature_k"})
    add(fmt::format("mlstm.{}.weight", name), {H, K, M}, "mixer", false, feature_start(H, K, M));
  add("mlstm.igate.weight", {H, D}, "mixer", false);
  add("mlstm.igate.bias", {H}, "mixer", false);
  add("mlstm.fgate.weight", {H, D}, "mixer", false);
  add("mlstm.fgate.bias", {H}, "mixer", false, linspace(3.0, 8.0));  // memories of 20 to 3 000 tokens
  add("mlstm.ogate.weight", {E, D}, "mixer", true);
  add("mlstm.ogate.bias", {E}, "mixer", false, constant(4.0));  // near open
  add_linear("self_attn.o_proj", D, E, "attention", decoder.has_o_bias);
  add("post_attention_layernorm.weight", {D}, "norm", false);
  add_linear("mlp.gate_up_proj", 2 * I, D, "feed_forward", decoder.has_mlp_bias);
  add_linear("mlp.down_proj", D, I, "feed_forward", decoder.has_mlp_bias);
  return specs;
}

struct ConvertState final : MixerState {
  Tensor tail_q_BJE, tail_k_BJE, tail_v_BJE;  // the convolutions' last J - 1 inputs; undefined without one
  ops::MlstmState cell;
  int64_t num_tokens = 0;  // seen, by every row: the position of the next one

  void for_each(const std::function<void(Tensor&)>& visit) override {
    for (Tensor* tail : {&tail_q_BJE, &tail_k_BJE, &tail_v_BJE}) {
      if (tail->defined()) visit(*tail);
    }
    for_each_tensor(cell, visit);
  }
  [[nodiscard]] std::unique_ptr<MixerState> clone() const override { return std::make_unique<ConvertState>(*this); }
};

// Sum over taps of w[e, j] x[t - (J - 1 - j), e], inside documents. `tail`, unless null, holds the inputs before the first and takes the
// last.
Tensor causal_conv(const Tensor& x_BSE, const Tensor& weight_EJ, const Tensor& is_start_BS, Tensor* tail_BJE) {
  const int64_t S = x_BSE.size(1), J = weight_EJ.size(1);
  const Tensor before = tail_BJE ? tail_BJE->to(x_BSE.scalar_type()) : at::zeros({x_BSE.size(0), J - 1, x_BSE.size(2)}, x_BSE.options());
  const Tensor all_BTE = at::cat({before, x_BSE}, 1), weight_JE = weight_EJ.to(x_BSE.scalar_type()).t();
  Tensor sum = x_BSE * weight_JE[J - 1], is_other;  // is_other: another document lies between
  for (int64_t back = 1; back < J; ++back) {
    Tensor term = all_BTE.narrow(1, J - 1 - back, S) * weight_JE[J - 1 - back];
    if (is_start_BS.defined()) {
      const Tensor begun = at::constant_pad_nd(is_start_BS.to(at::kBool), {back - 1, 0}).narrow(1, 0, S);
      is_other = is_other.defined() ? is_other.logical_or(begun) : begun;
      term = term.masked_fill(is_other.unsqueeze(2), 0.0);
    }
    sum = sum + term;
  }
  if (tail_BJE) {
    *tail_BJE = all_BTE.narrow(1, S, J - 1);
    if (is_start_BS.defined()) {  // what lies before a start behind it belongs to another document
      const Tensor starts = at::constant_pad_nd(is_start_BS.to(at::kLong), {J - 1, 0}).narrow(1, S, J - 1);
      const Tensor starts_after = starts.flip(1).cumsum(1).flip(1) - starts;
      *tail_BJE = tail_BJE->masked_fill((starts_after > 0).unsqueeze(2), 0.0);
    }
  }
  return sum;
}

nn::Matrix matrix(const Tensor& weight, const Tensor& converted) {
  return converted.defined() ? nn::Matrix(weight, converted) : nn::Matrix(weight);
}

// Rotary positions on the device of the first who asks.
class SharedRotary {
 public:
  SharedRotary(const nn::RopeConfig& config, int64_t head_dim) : config_(config), head_dim_(head_dim) {}
  const nn::Rotary& on(at::Device device) {
    const std::scoped_lock lock(mutex_);
    auto& rotary = by_device_[device.str()];
    if (!rotary) rotary = std::make_unique<nn::Rotary>(config_, head_dim_, device);
    return *rotary;
  }

 private:
  nn::RopeConfig config_;
  int64_t head_dim_;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<nn::Rotary>> by_device_;
};

// y_i = sum_j phi(q_i) phi(k_j) e^D_ij v_j / sum_j phi(q_i) phi(k_j) e^D_ij, times the output gate.
class ConvertMlstm final : public nn::TokenMixer {
 public:
  ConvertMlstm(const ConvertConfig& config, const Weights& weights, const Weights& products, const MixerCall& call,
               const nn::Rotary* rotary, ConvertState* state)
      : config_(config), w_(weights), products_(products), call_(call), rotary_(rotary), state_(state) {}

  [[nodiscard]] Tensor mix(const nn::MatrixInput& u) override {
    const int64_t B = u.sizes[0], S = u.sizes[1], H = config_.decoder.num_heads, K = config_.decoder.head_dim;
    std::optional<ConvertState> next;  // takes the state's place at the end: an error leaves that as it was
    if (state_) next = *state_;
    const auto heads = [&](const Tensor& weight, const Tensor& product, const Tensor& bias, const Tensor& taps,
                           Tensor ConvertState::* tail) {
      const Tensor x_BSE = projected(u, weight, product, bias);
      return (taps.defined() ? causal_conv(x_BSE, taps, call_.is_start_BS, next ? &((*next).*tail) : nullptr) : x_BSE).view({B, S, H, K});
    };
    const Tensor q_BSHK = placed(heads(w_.q_ED, products_.q_ED, w_.q_bias_E, w_.conv_q_EJ, &ConvertState::tail_q_BJE), w_.q_norm_K);
    const Tensor k_BSHK = placed(heads(w_.k_ED, products_.k_ED, w_.k_bias_E, w_.conv_k_EJ, &ConvertState::tail_k_BJE), w_.k_norm_K);
    const Tensor v_BSHK = heads(w_.v_ED, products_.v_ED, w_.v_bias_E, w_.conv_v_EJ, &ConvertState::tail_v_BJE);

    // The cell divides by at least e^-m, which a large factor on q keeps out of the way: what is left is the plain sum.
    constexpr double kAboveBound = 0x1p24;
    const at::ScalarType cell_type = cell_dtype(call_.compute_dtype);
    const Tensor gate_input = u.values.to(w_.input_gate_HD.scalar_type());
    const Tensor h_BSHK = run_mlstm_cell({.q_BSHK = (features(q_BSHK, w_.feature_q_HKM) * kAboveBound).to(cell_type),
                                          .k_BSHK = features(k_BSHK, w_.feature_k_HKM).to(cell_type),
                                          .v_BSHV = v_BSHK.to(cell_type).contiguous(),
                                          .igate_BSH = at::linear(gate_input, w_.input_gate_HD, w_.input_gate_bias_H),
                                          .fgate_BSH = at::linear(gate_input, w_.forget_gate_HD, w_.forget_gate_bias_H),
                                          .is_start_BS = call_.is_start_BS},
                                         call_.form, config_.chunk_size, next ? &next->cell : nullptr);
    const Tensor gate_BSE = at::sigmoid(projected(u, w_.output_gate_ED, products_.output_gate_ED, w_.output_gate_bias_E));
    if (next) {
      next->num_tokens += S;
      *state_ = std::move(*next);
    }
    return h_BSHK.reshape({B, S, H * K}).to(gate_BSE.scalar_type()) * gate_BSE;
  }

 private:
  static Tensor projected(const nn::MatrixInput& u, const Tensor& weight, const Tensor& product, const Tensor& bias) {
    return matrix(weight, product).product(u, bias.defined() ? bias.to(u.values.scalar_type()) : bias);
  }

  // Normed where the teacher's are, and turned by its place.
  [[nodiscard]] Tensor placed(const Tensor& x_BSHK, const Tensor& norm_K) const {
    const Tensor x = norm_K.defined()
                         ? nn::rms_norm_input(x_BSHK, norm_K, config_.decoder.rms_norm_eps, nn::ProductType::same_as_weights).values
                         : x_BSHK;
    return rotary_ ? rotary_->rotate(x, state_ ? state_->num_tokens : 0) : x;
  }

  // sqrt(K) [softmax(x A), softmax(-x A)] of each head, in float32 or float64.
  [[nodiscard]] static Tensor features(const Tensor& x_BSHK, const Tensor& map_HKM) {
    const int64_t B = x_BSHK.size(0), S = x_BSHK.size(1), H = x_BSHK.size(2), K = x_BSHK.size(3);
    const Tensor x_HNK = x_BSHK.permute({2, 0, 1, 3}).reshape({H, B * S, K});
    const Tensor logits_HNM = at::bmm(x_HNK, map_HKM.to(x_HNK.scalar_type()));
    const auto type = logits_HNM.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const Tensor both_HNF = at::cat({logits_HNM.softmax(2, type), logits_HNM.neg().softmax(2, type)}, 2);
    return both_HNF.view({H, B, S, -1}).permute({1, 2, 0, 3}).contiguous() * std::sqrt(static_cast<double>(K));
  }

  const ConvertConfig& config_;
  const Weights &w_, &products_;
  const MixerCall& call_;
  const nn::Rotary* rotary_;
  ConvertState* state_;
};

class ConvertBlock final : public Mixer {
 public:
  explicit ConvertBlock(const ConvertConfig& config)
      : config_(config), parameters_(parameters_of(config)), bind_(parameters_), rotary_(config.decoder.rope, config.decoder.head_dim) {}

  [[nodiscard]] std::string_view kind() const override { return "mlstm"; }
  [[nodiscard]] const std::vector<ParameterSpec>& parameters() const override { return parameters_; }

  [[nodiscard]] Tensor forward(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call, MixerState* state) const override {
    const Weights w = bind_(&weights), products = bind_(call.products);
    ConvertMlstm mixer(config_, w, products, call, config_.has_rope ? &rotary_.on(x_BSD.device()) : nullptr,
                       own_state<ConvertState>(state));
    const nn::DecoderWeights layer{.input_norm_D = w.input_norm_D,
                                   .o_DHK = matrix(w.o_DE, products.o_DE),
                                   .o_bias_D = w.o_bias_D,
                                   .mlp_norm_D = w.mlp_norm_D,
                                   .gate_up_2ID = matrix(w.gate_up_2ID, products.gate_up_2ID),
                                   .gate_up_bias_2I = w.gate_up_bias_2I,
                                   .down_DI = matrix(w.down_DI, products.down_DI),
                                   .down_bias_D = w.down_bias_D};
    return nn::decoder_layer(layer, mixer, x_BSD, {.rms_norm_eps = config_.decoder.rms_norm_eps, .compute_dtype = call.compute_dtype});
  }

  [[nodiscard]] std::unique_ptr<MixerState> zero_state(int64_t batch, at::ScalarType compute_dtype,
                                                       at::TensorOptions options) const override {
    const int64_t H = config_.decoder.num_heads, K = config_.decoder.head_dim, F = config_.feature_size(), J = config_.conv1d_kernel_size;
    auto state = std::make_unique<ConvertState>();
    if (J > 0) {
      for (Tensor* tail : {&state->tail_q_BJE, &state->tail_k_BJE, &state->tail_v_BJE})
        *tail = at::zeros({batch, J - 1, H * K}, options.dtype(compute_dtype));
    }
    state->cell = {at::zeros({batch, H, F, K}, options), at::zeros({batch, H, F}, options), at::zeros({batch, H}, options)};
    return state;
  }

  // Norms' inputs and outputs, q, k, v before and after the convolution, features and what they come from, cell, gate, feed-forward; a
  // matrix state a chunk and head.
  [[nodiscard]] KeptValues kept_values() const override {
    const int64_t D = config_.decoder.hidden_size, E = config_.inner_size(), H = config_.decoder.num_heads, F = config_.feature_size();
    return {.compute = 3 * D + 10 * E + 4 * H * F + 3 * config_.decoder.intermediate_size,
            .full = 2 * D + 2 * H * F + H * F * config_.decoder.head_dim / config_.chunk_size + 6 * H};
  }

 private:
  ConvertConfig config_;
  std::vector<ParameterSpec> parameters_;
  WeightBinder<Weights> bind_;
  mutable SharedRotary rotary_;
};

// Keys and values of a group, once for each of its queries' heads: [G K, ...] -> [H K, ...].
Tensor repeated(const Tensor& x, int64_t groups, int64_t repeats) {
  std::vector<int64_t> shape = x.sizes().vec();
  const Tensor grouped = x.reshape({groups, 1, -1}).expand({groups, repeats, x.numel() / groups});
  shape[0] *= repeats;
  return grouped.reshape(shape);
}

}  // namespace

std::unique_ptr<const Mixer> make_convert_block(const ConvertConfig& config) {
  return std::make_unique<ConvertBlock>(config);
}

std::string convert_block_prefix(int64_t layer) {
  return fmt::format("model.layers.{}.", layer);
}

void copy_from_teacher(const ConvertConfig& config, const nn::LanguageModel& teacher, NamedTensors& parameters) {
  const at::NoGradGuard no_grad;
  const int64_t G = config.decoder.num_kv_heads, repeats = config.decoder.num_heads / G;
  std::map<std::string, Tensor> stored;
  for (int64_t layer = 0; layer <= config.decoder.num_layers; ++layer) {
    const std::string prefix = layer < config.decoder.num_layers ? convert_block_prefix(layer) : "model.norm.";
    stored.clear();
    teacher.for_each_weight([&](const std::string& name, const Tensor& tensor) { stored[name] = tensor; }, prefix);
    const auto find = [&](const std::string& name) {
      const auto found = stored.find(name);
      if (found == stored.end()) throw DataError("the teacher has no tensor '{}' for the student to start from", name);
      return found->second;
    };
    for (auto& [name, parameter] : parameters) {
      if (!name.starts_with(prefix) || name.starts_with(prefix + "mlstm.")) continue;
      Tensor from;
      if (const size_t joined = name.find("gate_up_proj"); joined != std::string::npos) {
        const std::string begin = name.substr(0, joined), end = name.substr(name.rfind('.'));
        from = at::cat({find(fmt::format("{}gate_proj{}", begin, end)), find(fmt::format("{}up_proj{}", begin, end))});
      } else {
        const bool is_grouped = name.find("k_proj") != std::string::npos || name.find("v_proj") != std::string::npos;
        from = is_grouped ? repeated(find(name), G, repeats) : find(name);
      }
      parameter.copy_(from);
    }
  }
}

}  // namespace distil_xlstm::student
