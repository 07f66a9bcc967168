// A layer with a cell of cells.h behind the teacher's projections.
#include "student/convert/layer.h"
#include "student/convert/look_back.h"
#include "student/convert/mixer.h"
#include "student/convert/per_device.h"

namespace distil_xlstm::student {
namespace {

class CellLayer final : public ConvertLayer {
 public:
  CellLayer(const ConvertConfig& config, const std::string& cell)
      : ConvertLayer(config, cell, layer_parameters(config, cell_parameters(config))),
        cell_(find_convert_cell(cell)),
        bind_(parameters()),
        bind_layer_(parameters()),
        rotary_([rope = config.rope(), head_dim = config.decoder.head_dim](at::Device device) {
          return std::make_unique<const nn::Rotary>(rope, head_dim, device);
        }) {}

  [[nodiscard]] std::unique_ptr<MixerState> zero_state(int64_t batch, at::ScalarType compute_dtype,
                                                       at::TensorOptions options) const override {
    const int64_t J = config().conv1d_kernel_size;
    auto state = std::make_unique<ConvertState>();
    if (J > 0) state->tail_BJT = at::zeros({batch, J - 1, 3 * config().inner_size()}, options.dtype(compute_dtype));
    state->cell = cell_.zero_state(batch, config(), options);
    return state;
  }

  [[nodiscard]] bool has_features() const override { return true; }
  [[nodiscard]] bool starts_from_rows() const override { return looks_back() || fits_values() || config().has_head_norm; }
  void start_from_rows(const MixerWeights& weights, const Tensor& x_BSD, const Tensor& is_start_BS) const override {
    const at::NoGradGuard no_grad;
    const CellWeights w = bind_(&weights);
    const Tensor norm_D = bind_layer_(&weights).input_norm_D;
    const LayerAttention attention(config(), norm_D, w, x_BSD, is_start_BS);
    if (looks_back()) Tensor(w.forget_gate_bias_H).copy_(cell_.forget_gate_of(attention.mean_look_back()));
    if (!fits_values() && !config().has_head_norm) return;
    const at::ScalarType type = w.qkv_TD.scalar_type();
    const MixerCall call{.is_start_BS = is_start_BS, .compute_dtype = type};
    const nn::MatrixInput u_BSD = input_of(weights, x_BSD.to(type), call);
    const Tensor mixed_BSE = with_mixer(weights, call, x_BSD.device(), nullptr, [&](nn::TokenMixer& mixer) { return mixer.mix(u_BSD); });
    if (config().has_head_norm) {  // whatever the size of the values
      Tensor(w.head_norm_E).mul_(attention.channel_factors(mixed_BSE));
      return;
    }
    // The cells are linear in v, and so is the convolution.
    const int64_t E = config().inner_size();
    const Tensor factor_E = attention.value_factors(mixed_BSE).to(type).repeat_interleave(config().decoder.head_dim);
    w.qkv_TD.narrow(0, 2 * E, E).mul_(factor_E.unsqueeze(1));
    if (w.qkv_bias_T.defined()) w.qkv_bias_T.narrow(0, 2 * E, E).mul_(factor_E);
  }

  [[nodiscard]] bool has_mixing_matrix() const override { return cell_.has_mixing_matrix(); }
  [[nodiscard]] Tensor mixing_error_sum(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call,
                                        const AttentionMatrix& attention) const override {
    const CellWeights w = bind_(&weights), products = bind_(call.products);
    const ConvertMixer mixer(config(), cell_, w, products, call, config().has_rope ? &rotary_.on(x_BSD.device()) : nullptr, nullptr);
    return mixer.mixing_error_sum(input_of(weights, x_BSD, call), attention);
  }

 protected:
  [[nodiscard]] Tensor with_mixer(const MixerWeights& weights, const MixerCall& call, at::Device device, MixerState* state,
                                  const WithMixer& layer) const override {
    const CellWeights w = bind_(&weights), products = bind_(call.products);
    ConvertMixer mixer(config(), cell_, w, products, call, config().has_rope ? &rotary_.on(device) : nullptr,
                       own_state<ConvertState>(state));
    return layer(mixer);
  }

  // q, k, v before and after the convolution and turned, gates, the cell's output normed and scaled, and the cell's.
  [[nodiscard]] KeptValues mixer_kept_values() const override {
    const KeptValues cell = cell_.kept_values(config());
    return {.compute = cell.compute + (config().has_head_norm ? 14 : 12) * config().inner_size(),
            .full = cell.full + 2 * config().decoder.num_heads};
  }

 private:
  [[nodiscard]] nn::MatrixInput input_of(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call) const {
    return nn::mixer_input(bind_layer_(&weights).input_norm_D, x_BSD,
                           {.rms_norm_eps = config().decoder.rms_norm_eps, .compute_dtype = call.compute_dtype});
  }
  [[nodiscard]] bool looks_back() const { return config().gate_init == config::GateInit::look_back; }
  [[nodiscard]] bool fits_values() const { return config().value_init == config::ValueInit::least_squares; }

  const ConvertCell& cell_;
  WeightBinder<CellWeights> bind_;
  WeightBinder<LayerWeights> bind_layer_;
  mutable PerDevice<nn::Rotary> rotary_;
};

}  // namespace

std::unique_ptr<const ConvertLayer> make_cell_layer(const ConvertConfig& config, const std::string& cell) {
  return std::make_unique<CellLayer>(config, cell);
}

}  // namespace distil_xlstm::student
