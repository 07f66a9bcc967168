#include "student/convert/block.h"

#include <map>
#include <mutex>

#include "nn/decoder_layer.h"
#include "student/convert/mixer.h"

namespace distil_xlstm::student {
namespace {

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

nn::DecoderWeights layer_weights(const ConvertWeights& w, const ConvertWeights& products) {
  return {.input_norm_D = w.input_norm_D,
          .o_DHK = matrix(w.o_DE, products.o_DE),
          .o_bias_D = w.o_bias_D,
          .mlp_norm_D = w.mlp_norm_D,
          .gate_up_2ID = matrix(w.gate_up_2ID, products.gate_up_2ID),
          .gate_up_bias_2I = w.gate_up_bias_2I,
          .down_DI = matrix(w.down_DI, products.down_DI),
          .down_bias_D = w.down_bias_D};
}

class ConvertBlock final : public Mixer {
 public:
  ConvertBlock(const ConvertConfig& config, std::string mixer)
      : config_(config),
        mixer_(std::move(mixer)),
        cell_(find_convert_cell(mixer_)),
        parameters_(convert_parameters(config)),
        bind_(parameters_),
        rotary_(config.decoder.rope, config.decoder.head_dim) {}

  [[nodiscard]] std::string_view kind() const override { return mixer_; }
  [[nodiscard]] const std::vector<ParameterSpec>& parameters() const override { return parameters_; }

  [[nodiscard]] Tensor forward(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call, MixerState* state) const override {
    return run(weights, x_BSD, call, state, nn::decoder_layer);
  }
  [[nodiscard]] Tensor mixer_output(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call) const override {
    return run(weights, x_BSD, call, nullptr, nn::mixer_output);
  }

  [[nodiscard]] std::unique_ptr<MixerState> zero_state(int64_t batch, at::ScalarType compute_dtype,
                                                       at::TensorOptions options) const override {
    const int64_t J = config_.conv1d_kernel_size;
    auto state = std::make_unique<ConvertState>();
    if (J > 0) state->tail_BJT = at::zeros({batch, J - 1, 3 * config_.inner_size()}, options.dtype(compute_dtype));
    state->cell = cell_.zero_state(batch, config_, options);
    return state;
  }

  // Norms' inputs and outputs, q, k, v before and after the convolution and turned, gates, feed-forward, and the cell's.
  [[nodiscard]] KeptValues kept_values() const override {
    const int64_t D = config_.decoder.hidden_size, E = config_.inner_size();
    const KeptValues cell = cell_.kept_values(config_);
    return {.compute = cell.compute + 3 * D + 12 * E + 3 * config_.decoder.intermediate_size,
            .full = cell.full + 3 * D + 2 * config_.decoder.num_heads};
  }

 private:
  Tensor run(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call, MixerState* state,
             Tensor (*layer)(const nn::DecoderWeights&, nn::TokenMixer&, const Tensor&, const nn::LayerCall&)) const {
    const ConvertWeights w = bind_(&weights), products = bind_(call.products);
    ConvertMixer mixer(config_, cell_, w, products, call, config_.has_rope ? &rotary_.on(x_BSD.device()) : nullptr,
                       own_state<ConvertState>(state));
    return layer(layer_weights(w, products), mixer, x_BSD,
                 {.rms_norm_eps = config_.decoder.rms_norm_eps, .compute_dtype = call.compute_dtype});
  }

  ConvertConfig config_;
  std::string mixer_;
  const ConvertCell& cell_;
  std::vector<ParameterSpec> parameters_;
  WeightBinder<ConvertWeights> bind_;
  mutable SharedRotary rotary_;
};

}  // namespace

std::unique_ptr<const Mixer> make_convert_block(const ConvertConfig& config, const std::string& mixer) {
  return std::make_unique<ConvertBlock>(config, mixer);
}

}  // namespace distil_xlstm::student
