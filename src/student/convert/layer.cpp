#include "student/convert/layer.h"

#include <array>
#include <utility>

#include "config/names.h"
#include "student/convert/large_form.h"

namespace distil_xlstm::student {
namespace {

struct LayerKind {
  const char* mixer;
  std::unique_ptr<const ConvertLayer> (*make)(const ConvertConfig& config, const std::string& mixer);
};

constexpr std::array kLayerKinds = {LayerKind{"mlstm", make_cell_layer}, LayerKind{"gated-delta", make_cell_layer},
                                    LayerKind{"slstm", make_slstm_layer}, LayerKind{"attention", make_attention_layer},
                                    LayerKind{kLargeMixer, make_large_layer}};

}  // namespace

ConvertLayer::ConvertLayer(const ConvertConfig& config, std::string mixer, std::vector<ParameterSpec> parameters)
    : config_(config), mixer_(std::move(mixer)), parameters_(std::move(parameters)), bind_(parameters_) {}

Tensor ConvertLayer::forward(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call, MixerState* state) const {
  return run(nn::decoder_layer, weights, x_BSD, call, state);
}

Tensor ConvertLayer::mixer_output(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call) const {
  return run(nn::mixer_output, weights, x_BSD, call, nullptr);
}

Tensor ConvertLayer::run(LayerFunction function, const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call,
                         MixerState* state) const {
  const LayerWeights w = bind_(&weights), products = bind_(call.products);
  const nn::DecoderWeights layer{.input_norm_D = w.input_norm_D,
                                 .o_DHK = matrix_of(w.o_DE, products.o_DE),
                                 .o_bias_D = w.o_bias_D,
                                 .mlp_norm_D = w.mlp_norm_D,
                                 .gate_up_2ID = matrix_of(w.gate_up_2ID, products.gate_up_2ID),
                                 .gate_up_bias_2I = w.gate_up_bias_2I,
                                 .down_DI = matrix_of(w.down_DI, products.down_DI),
                                 .down_bias_D = w.down_bias_D};
  return with_mixer(weights, call, x_BSD.device(), state, [&](nn::TokenMixer& mixer) {
    return function(layer, mixer, x_BSD, {.rms_norm_eps = config_.decoder.rms_norm_eps, .compute_dtype = call.compute_dtype});
  });
}

// Norms' inputs and outputs, the output projection's input, feed-forward, and the mixer's.
KeptValues ConvertLayer::kept_values() const {
  const int64_t D = config_.decoder.hidden_size;
  const KeptValues mixer = mixer_kept_values();
  return {.compute = mixer.compute + 3 * D + 3 * config_.decoder.intermediate_size, .full = mixer.full + 3 * D};
}

std::unique_ptr<const ConvertLayer> make_convert_layer(const ConvertConfig& config, const std::string& mixer) {
  for (const LayerKind& kind : kLayerKinds) {
    if (kind.mixer == mixer) return kind.make(config, mixer);
  }
  throw config::unknown_name(mixer, convert_mixer_names(), "student.mixers");
}

std::vector<std::string> convert_mixer_names() {
  std::vector<std::string> names;
  for (const LayerKind& kind : kLayerKinds) names.emplace_back(kind.mixer);
  return names;
}

}  // namespace distil_xlstm::student
