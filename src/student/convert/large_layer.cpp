// A layer with the block of NX-AI's large models in attention's place, as `transformers` computes it (xLSTMForCausalLM): an mLSTM on the
// teacher's queries and keys as they are, soft-capped gates, each head normed, an output gate (docs/convert.md).
#include <cmath>
#include <optional>
#include <utility>

#include "ops/gated.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "student/convert/large_form.h"
#include "student/convert/layer.h"
#include "student/convert/look_back.h"
#include "student/mlstm_cell.h"

namespace distil_xlstm::student {
namespace {

constexpr double kOpenAtStart = 0.5;  // the output gate: its weights start at 0, and it has no bias

struct LargeState final : MixerState {
  ops::MlstmState cell;

  void for_each(const std::function<void(Tensor&)>& visit) override { for_each_tensor(cell, visit); }
  [[nodiscard]] std::unique_ptr<MixerState> clone() const override { return std::make_unique<LargeState>(*this); }
};

// What a gate is before it is capped, of what it is to be afterwards.
Tensor before_soft_cap(const Tensor& gate) {
  return kGateSoftCap * at::atanh(gate / kGateSoftCap);
}

class LargeMixer final : public nn::TokenMixer {
 public:
  // All must outlive the mixer; `state` may be null.
  LargeMixer(const ConvertConfig& config, const CellWeights& weights, const CellWeights& products, const MixerCall& call, LargeState* state)
      : config_(config), w_(weights), products_(products), call_(call), state_(state) {}

  [[nodiscard]] Tensor mix(const nn::MatrixInput& u_BSD) override {
    std::optional<ops::MlstmState> next;  // takes the state's place at the end: an error leaves that as it was
    if (state_) next = state_->cell;
    const Tensor normed_BSHK = normed_heads(u_BSD, next ? &*next : nullptr);
    const Tensor gate_BSE = projected(u_BSD, w_.output_gate_ED, products_.output_gate_ED, {});
    if (next) state_->cell = std::move(*next);
    const Tensor heads_BSE = normed_BSHK.reshape(gate_BSE.sizes()).to(gate_BSE.scalar_type()) * w_.head_norm_E.to(gate_BSE.scalar_type());
    return ops::gated_activation(gate_BSE, heads_BSE, ops::Activation::sigmoid);
  }

  // What the cell gives, each head normed, before the norm's weight.
  [[nodiscard]] Tensor normed_heads(const nn::MatrixInput& u_BSD, ops::MlstmState* cell) const {
    const int64_t B = u_BSD.sizes[0], S = u_BSD.sizes[1], H = config_.decoder.num_heads, K = config_.decoder.head_dim;
    const Tensor qkv_BST = projected(u_BSD, w_.qkv_TD, products_.qkv_TD, w_.qkv_bias_T);
    const auto parts = qkv_BST.split(H * K, 2);  // its gradient is one copy
    const auto heads = [&](size_t part, const Tensor& norm_K) {
      const Tensor x_BSHK = parts[part].view({B, S, H, K});
      const Tensor normed_BSHK = norm_K.defined() ? ops::rms_norm(x_BSHK, norm_K.to(x_BSHK.scalar_type()), eps()) : x_BSHK;
      return normed_BSHK.to(cell_dtype(call_.compute_dtype)).contiguous();
    };
    const Tensor raw_BSG = ops::wide_linear(u_BSD.values, at::cat({w_.input_gate_HD, w_.forget_gate_HD}),
                                            at::cat({w_.input_gate_bias_H, w_.forget_gate_bias_H}));
    const auto gates = (kGateSoftCap * at::tanh(raw_BSG / kGateSoftCap)).chunk(2, 2);
    const Tensor h_BSHK = run_mlstm_cell({.q_BSHK = heads(0, w_.q_norm_K),
                                          .k_BSHK = heads(1, w_.k_norm_K),
                                          .v_BSHV = heads(2, {}),
                                          .igate_BSH = gates[0],
                                          .fgate_BSH = gates[1],
                                          .is_start_BS = call_.is_start_BS},
                                         call_.form, config_.chunk_size, cell);
    return at::layer_norm(h_BSHK, {K}, {}, {}, eps());
  }

 private:
  [[nodiscard]] double eps() const { return config_.decoder.rms_norm_eps; }

  const ConvertConfig& config_;
  const CellWeights &w_, &products_;
  const MixerCall& call_;
  LargeState* state_;
};

SpecList large_parameters(const ConvertConfig& config) {
  const int64_t D = config.decoder.hidden_size, E = config.inner_size(), H = config.decoder.num_heads;
  const bool looks_back = config.gate_init == config::GateInit::look_back;
  SpecList specs = projection_parameters(config);
  specs.add("mixer.igate.weight", {H, D}, "mixer", false, "0")
      .add("mixer.igate.bias", {H}, "mixer", false, "0")
      .add("mixer.fgate.weight", {H, D}, "mixer", false, "0")
      .add("mixer.fgate.bias", {H}, "mixer", false, looks_back ? "the teacher's look-back" : "3 to 8", linspace(3.0, 8.0))
      .add("mixer.ogate.weight", {E, D}, "mixer", true, "0")
      .add("mixer.head_norm.weight", {E}, "mixer", false, "nearest to attention's heads", constant(1.0));
  return specs;
}

class LargeLayer final : public ConvertLayer {
 public:
  LargeLayer(const ConvertConfig& config, const std::string& mixer)
      : ConvertLayer(config, mixer, layer_parameters(config, large_parameters(config))), bind_(parameters()), bind_layer_(parameters()) {}

  [[nodiscard]] std::unique_ptr<MixerState> zero_state(int64_t batch, at::ScalarType /*compute_dtype*/,
                                                       at::TensorOptions options) const override {
    const int64_t H = config().decoder.num_heads, K = config().decoder.head_dim;
    auto state = std::make_unique<LargeState>();
    state->cell = {at::zeros({batch, H, K, K}, options), at::zeros({batch, H, K}, options), at::zeros({batch, H}, options)};
    return state;
  }

  [[nodiscard]] bool starts_from_rows() const override { return true; }
  void start_from_rows(const MixerWeights& weights, const Tensor& x_BSD, const Tensor& is_start_BS) const override {
    const at::NoGradGuard no_grad;
    const CellWeights w = bind_(&weights), products;
    const Tensor norm_D = bind_layer_(&weights).input_norm_D;
    const LayerAttention attention(config(), norm_D, w, x_BSD, is_start_BS);
    if (config().gate_init == config::GateInit::look_back)
      Tensor(w.forget_gate_bias_H).copy_(before_soft_cap(forget_gate_of(attention.mean_look_back())));
    const at::ScalarType type = w.qkv_TD.scalar_type();
    const MixerCall call{.is_start_BS = is_start_BS, .compute_dtype = type};
    const LargeMixer mixer(config(), w, products, call, nullptr);
    const nn::MatrixInput u_BSD =
        nn::mixer_input(norm_D, x_BSD.to(type), {.rms_norm_eps = config().decoder.rms_norm_eps, .compute_dtype = type});
    Tensor(w.head_norm_E).copy_(attention.channel_factors(kOpenAtStart * mixer.normed_heads(u_BSD, nullptr).flatten(2)));
  }

 protected:
  [[nodiscard]] Tensor with_mixer(const MixerWeights& weights, const MixerCall& call, at::Device /*device*/, MixerState* state,
                                  const WithMixer& layer) const override {
    const CellWeights w = bind_(&weights), products = bind_(call.products);
    LargeMixer mixer(config(), w, products, call, own_state<LargeState>(state));
    return layer(mixer);
  }

  // q, k, v, the cell's output, that normed and scaled, the gate; gates before and after their cap, and the cell's.
  [[nodiscard]] KeptValues mixer_kept_values() const override {
    const int64_t H = config().decoder.num_heads, E = config().inner_size();
    return {.compute = 7 * E, .full = 4 * H + E * config().decoder.head_dim / config().chunk_size + 4 * H};
  }

 private:
  WeightBinder<CellWeights> bind_;
  WeightBinder<LayerWeights> bind_layer_;
};

}  // namespace

std::unique_ptr<const ConvertLayer> make_large_layer(const ConvertConfig& config, const std::string& mixer) {
  return std::make_unique<LargeLayer>(config, mixer);
}

}  // namespace distil_xlstm::student
