// A layer with an sLSTM on the teacher's values in attention's place (docs/convert.md).
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "nn/token_mixer.h"
#include "ops/slstm.h"
#include "student/convert/layer.h"
#include "student/convert/look_back.h"

namespace distil_xlstm::student {
namespace {

// Gates as in CellWeights, but for every channel.
struct ScalarWeights {
  Tensor v_ED, v_bias_E, conv_EJ;
  Tensor input_gate_ED, input_gate_bias_E, forget_gate_ED, forget_gate_bias_E, output_gate_ED, output_gate_bias_E;
  Tensor recurrent_HKGK;
  Tensor log_range_E;  // of tanh on the values: its logarithm, so that no step of training takes it through 0

  template <typename Visit>
  void for_each(const Visit& visit) {
    visit("self_attn.v_proj.weight", v_ED);
    visit("self_attn.v_proj.bias", v_bias_E);
    visit("mixer.conv.weight", conv_EJ);
    visit("mixer.igate.weight", input_gate_ED);
    visit("mixer.igate.bias", input_gate_bias_E);
    visit("mixer.fgate.weight", forget_gate_ED);
    visit("mixer.fgate.bias", forget_gate_bias_E);
    visit("mixer.ogate.weight", output_gate_ED);
    visit("mixer.ogate.bias", output_gate_bias_E);
    visit("mixer.recurrent.weight", recurrent_HKGK);
    visit("mixer.log_range.weight", log_range_E);
  }
};

struct ScalarState final : MixerState {
  Tensor tail_BJE;  // the convolution's last J - 1 inputs; undefined without one
  ops::SlstmState cell;

  void for_each(const std::function<void(Tensor&)>& visit) override {
    for (Tensor* tensor : {&tail_BJE, &cell.hidden_BHK, &cell.cell_BHK, &cell.normalizer_BHK, &cell.stabilizer_BHK}) {
      if (tensor->defined()) visit(*tensor);
    }
  }
  [[nodiscard]] std::unique_ptr<MixerState> clone() const override { return std::make_unique<ScalarState>(*this); }
};

// From 3 to 8 over the heads, all channels of one alike.
Initializer spread_over_heads(int64_t heads, int64_t K) {
  return [=](Random&, std::span<double> out) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = linspace_at(3.0, 8.0, static_cast<int64_t>(i) / K, heads);
  };
}

SpecList scalar_parameters(const ConvertConfig& config) {
  const auto& decoder = config.decoder;
  const int64_t D = decoder.hidden_size, E = config.inner_size(), H = decoder.num_heads, K = decoder.head_dim;
  const int64_t J = config.conv1d_kernel_size;
  const bool looks_back = config.gate_init == config::GateInit::look_back;
  SpecList specs;
  specs.add_linear("self_attn.v_proj", E, D, "attention", decoder.has_qkv_bias,
                   decoder.num_kv_heads == H ? "copied" : fmt::format("copied; {} heads repeated to {}", decoder.num_kv_heads, H));
  if (J > 0) specs.add("mixer.conv.weight", {E, J}, "mixer", false, "identity", identity_taps(J));
  specs.add("mixer.igate.weight", {E, D}, "mixer", true, "0")
      .add("mixer.igate.bias", {E}, "mixer", false, "0")
      .add("mixer.fgate.weight", {E, D}, "mixer", true, "0")
      .add("mixer.fgate.bias", {E}, "mixer", false, looks_back ? "the teacher's look-back" : "3 to 8", spread_over_heads(H, K))
      .add("mixer.ogate.weight", {E, D}, "mixer", true, "0")
      .add("mixer.ogate.bias", {E}, "mixer", false, "4", constant(4.0))
      .add("mixer.recurrent.weight", {H, K, 4, K}, "mixer", false, "0")
      .add("mixer.log_range.weight", {E}, "mixer", false, looks_back ? "log of 4 times the values' size" : "log 4",
           constant(std::log(4.0)));
  return specs;
}

class ScalarMixer final : public nn::TokenMixer {
 public:
  // All must outlive the mixer; `state` may be null.
  ScalarMixer(const ConvertConfig& config, const ScalarWeights& weights, const ScalarWeights& products, const MixerCall& call,
              ScalarState* state)
      : config_(config), w_(weights), products_(products), call_(call), state_(state) {}

  [[nodiscard]] Tensor mix(const nn::MatrixInput& u_BSD) override {
    const int64_t B = u_BSD.sizes[0], S = u_BSD.sizes[1], H = config_.decoder.num_heads, K = config_.decoder.head_dim;
    std::optional<ScalarState> next;  // takes the state's place at the end: an error leaves that as it was
    if (state_) next = *state_;
    const Tensor v_BSE = values(u_BSD, next ? &next->tail_BJE : nullptr);
    const auto gate = [&](const Tensor& weight, const Tensor& product) {
      return projected(u_BSD, weight, product, {}).to(v_BSE.scalar_type());
    };
    const Tensor range_E = w_.log_range_E.exp().to(v_BSE.scalar_type());
    const Tensor inputs_BSGE =
        at::stack({gate(w_.input_gate_ED, products_.input_gate_ED), gate(w_.forget_gate_ED, products_.forget_gate_ED), v_BSE / range_E,
                   gate(w_.output_gate_ED, products_.output_gate_ED)},
                  2);
    const Tensor wx_BSHGK = inputs_BSGE.view({B, S, 4, H, K}).transpose(2, 3);
    const Tensor bias_GE =
        at::stack({w_.input_gate_bias_E, w_.forget_gate_bias_E, at::zeros_like(w_.input_gate_bias_E), w_.output_gate_bias_E});
    ops::SlstmOutput out = ops::slstm_scan(wx_BSHGK, w_.recurrent_HKGK, bias_GE.view({4, H, K}).transpose(0, 1),
                                           next ? next->cell : ops::SlstmState{}, call_.is_start_BS);
    if (next) {
      next->cell = std::move(out.state);
      *state_ = std::move(*next);
    }
    return (out.y_BSHK.reshape({B, S, H * K}) * range_E).to(u_BSD.values.scalar_type());
  }

  // In the cell's type, behind the convolution. `tail_BJE`, unless null, holds its inputs before the first, and takes the last.
  [[nodiscard]] Tensor values(const nn::MatrixInput& u_BSD, Tensor* tail_BJE) const {
    const Tensor v_BSE = convolved(projected(u_BSD, w_.v_ED, products_.v_ED, w_.v_bias_E), w_.conv_EJ, call_.is_start_BS, tail_BJE);
    return v_BSE.to(cell_dtype(call_.compute_dtype));
  }

 private:
  const ConvertConfig& config_;
  const ScalarWeights &w_, &products_;
  const MixerCall& call_;
  ScalarState* state_;
};

class ScalarLayer final : public ConvertLayer {
 public:
  ScalarLayer(const ConvertConfig& config, const std::string& mixer)
      : ConvertLayer(config, mixer, layer_parameters(config, scalar_parameters(config))), bind_(parameters()), bind_layer_(parameters()) {}

  [[nodiscard]] std::unique_ptr<MixerState> zero_state(int64_t batch, at::ScalarType compute_dtype,
                                                       at::TensorOptions options) const override {
    const int64_t J = config().conv1d_kernel_size, H = config().decoder.num_heads, K = config().decoder.head_dim;
    auto state = std::make_unique<ScalarState>();
    if (J > 0) state->tail_BJE = at::zeros({batch, J - 1, config().inner_size()}, options.dtype(compute_dtype));
    for (Tensor* tensor : {&state->cell.hidden_BHK, &state->cell.cell_BHK, &state->cell.normalizer_BHK, &state->cell.stabilizer_BHK})
      *tensor = at::zeros({batch, H, K}, options);
    return state;
  }

  [[nodiscard]] bool starts_from_rows() const override { return config().gate_init == config::GateInit::look_back; }
  // The memory of a head halves in as many tokens as the teacher's looks back, and values stay where tanh is nearly straight.
  void start_from_teacher(const MixerWeights& weights, const TeacherRows& rows) const override {
    const at::NoGradGuard no_grad;
    if (rows.teacher_weights.empty()) return;
    const ScalarWeights w = bind_(&weights);
    const Tensor norm_D = bind_layer_(&weights).input_norm_D;
    const Tensor half_life_H = LayerAttention(config(), norm_D, queries_and_keys(rows), rows.x_BSD, rows.is_start_BS).mean_look_back();
    Tensor(w.forget_gate_bias_E).copy_(forget_gate_of(half_life_H).repeat_interleave(config().decoder.head_dim));
    const auto u_BSD =
        nn::rms_norm_input(rows.x_BSD.to(w.v_ED.scalar_type()), norm_D, config().decoder.rms_norm_eps, nn::ProductType::same_as_weights);
    const Tensor values_BSE = projected(u_BSD, w.v_ED, {}, w.v_bias_E);
    constexpr double kLeast = 1e-3;  // of a channel that is always 0
    Tensor(w.log_range_E).copy_((4.0 * values_BSE.square().mean(at::IntArrayRef{0, 1}).sqrt()).clamp_min(kLeast).log());
  }

 protected:
  [[nodiscard]] Tensor with_mixer(const MixerWeights& weights, const MixerCall& call, at::Device /*device*/, MixerState* state,
                                  const WithMixer& layer) const override {
    const ScalarWeights w = bind_(&weights), products = bind_(call.products);
    ScalarMixer mixer(config(), w, products, call, own_state<ScalarState>(state));
    return layer(mixer);
  }

  // The values before and after the convolution, over their range, four pre-activations together and apart, what the cell gives; the
  // cell's.
  [[nodiscard]] KeptValues mixer_kept_values() const override {
    const int64_t E = config().inner_size();
    return {.compute = 14 * E, .full = 8 * E};
  }

 private:
  // Of the teacher's layer; keys for each of the queries' heads.
  [[nodiscard]] CellWeights queries_and_keys(const TeacherRows& rows) const {
    const int64_t G = config().decoder.num_kv_heads, repeats = config().decoder.num_heads / G;
    const auto of_teacher = [&](const char* name) {
      const auto found = rows.teacher_weights.find(name);
      return found == rows.teacher_weights.end() ? Tensor() : found->second.to(rows.x_BSD.device(), rows.x_BSD.scalar_type());
    };
    const auto joined = [&](const char* q, const char* k) {
      const Tensor of_q = of_teacher(q);
      return of_q.defined() ? at::cat({of_q, for_each_query(of_teacher(k), G, repeats)}) : Tensor();
    };
    CellWeights w;
    w.qkv_TD = joined("self_attn.q_proj.weight", "self_attn.k_proj.weight");
    w.qkv_bias_T = joined("self_attn.q_proj.bias", "self_attn.k_proj.bias");
    w.q_norm_K = of_teacher("self_attn.q_norm.weight");
    w.k_norm_K = of_teacher("self_attn.k_norm.weight");
    return w;
  }

  WeightBinder<ScalarWeights> bind_;
  WeightBinder<LayerWeights> bind_layer_;
};

}  // namespace

std::unique_ptr<const ConvertLayer> make_slstm_layer(const ConvertConfig& config, const std::string& mixer) {
  return std::make_unique<ScalarLayer>(config, mixer);
}

}  // namespace distil_xlstm::student
