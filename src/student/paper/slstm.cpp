#include "student/paper/slstm.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "ops/blockdiag.h"
#include "ops/causal_conv.h"
#include "ops/gated.h"
#include "ops/norm.h"

namespace distil_xlstm::student {
namespace {

// The package's names of the first two gates are swapped (docs/mathematics.md 2): slot i is fed by `fgate`, f by `igate`.
struct Weights {
  Tensor norm, conv_weight, conv_bias, input_gate, forget_gate, cell_gate, output_gate, recurrent, bias, group_norm;
  Tensor ffn_norm, ffn_up, ffn_up_bias, ffn_down, ffn_down_bias;

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

// Bias of the cell, [H, 4, K]: only the forget gate's differs from zero, except in "standard".
Initializer bias_of_cell(const StudentConfig& config, int64_t block) {
  if (config.bias_init == config::BiasInit::standard) return uniform(1.0 / std::sqrt(static_cast<double>(config.embedding_dim)));
  if (config.bias_init == config::BiasInit::zeros) return constant(0.0);
  const int64_t num_heads = config.slstm_num_heads;
  const int64_t head_dim = config.embedding_dim / num_heads;
  const bool is_powerlaw = config.bias_init == config::BiasInit::powerlaw_blockdependent;
  const double depth = config.num_blocks > 1 ? static_cast<double>(block) / static_cast<double>(config.num_blocks - 1) : 0.0;
  return [=](Random&, std::span<double> out) {
    std::fill(out.begin(), out.end(), 0.0);
    for (int64_t h = 0; h < num_heads; ++h) {
      for (int64_t d = 0; d < head_dim; ++d) {
        const double powerlaw = 5.0 - 12.0 * std::pow(linspace_at(0.0, 1.0, d, head_dim), 0.3 + 1.3 * depth);
        out[static_cast<size_t>((h * 4 + 1) * head_dim + d)] = is_powerlaw ? powerlaw : linspace_at(3.0, 6.0, d, head_dim);
      }
    }
  };
}

std::vector<ParameterSpec> feed_forward_parameters(const StudentConfig& config) {
  const int64_t D = config.embedding_dim, P = config.ffn_dim();
  const auto part = [](std::string name, Shape shape, Initializer initialize, bool decays) {
    return ParameterSpec{.name = std::move(name),
                         .shape = std::move(shape),
                         .initialize = std::move(initialize),
                         .group = "feed_forward",
                         .decays = decays,
                         .product_type = in_compute_type()};
  };
  std::vector<ParameterSpec> specs = {
      {.name = "ffn_norm.weight", .shape = {D}, .initialize = constant(0.0), .group = "norm", .product_type = {}}};
  specs.push_back(part("ffn.proj_up.weight", {2 * P, D}, normal(small_std(D)), true));
  if (config.ffn_bias) specs.push_back(part("ffn.proj_up.bias", {2 * P}, constant(0.0), false));
  specs.push_back(part("ffn.proj_down.weight", {D, P}, normal(wang_std(D, config.num_blocks)), true));
  if (config.ffn_bias) specs.push_back(part("ffn.proj_down.bias", {D}, constant(0.0), false));
  return specs;
}

std::vector<ParameterSpec> parameters_of(const StudentConfig& config, int64_t block) {
  const int64_t D = config.embedding_dim, H = config.slstm_num_heads, K = D / H, taps = config.slstm_conv1d_kernel_size;
  std::vector<ParameterSpec> specs;
  specs.push_back({.name = "xlstm_norm.weight", .shape = {D}, .initialize = constant(0.0), .group = "norm", .product_type = {}});
  if (taps > 0) {
    const Initializer initialize = uniform(1.0 / std::sqrt(static_cast<double>(taps)));
    specs.push_back(
        {.name = "xlstm.conv1d.conv.weight", .shape = {D, 1, taps}, .initialize = initialize, .decays = true, .product_type = {}});
    specs.push_back({.name = "xlstm.conv1d.conv.bias", .shape = {D}, .initialize = initialize, .product_type = {}});
  }
  for (const char* gate : {"fgate", "igate", "zgate", "ogate"}) {
    specs.push_back({.name = fmt::format("xlstm.{}.weight", gate),
                     .shape = {H, K, K},
                     .initialize = normal(small_std(D)),
                     .decays = true,
                     .product_type = in_cell_type()});
  }
  const bool is_uniform = config.recurrent_weight_init == config::RecurrentWeightInit::standard;
  specs.push_back({.name = "xlstm.slstm_cell._recurrent_kernel_",
                   .shape = {H, K, 4, K},
                   .initialize = is_uniform ? uniform(1.0 / std::sqrt(static_cast<double>(D))) : constant(0.0),
                   .product_type = {},
                   .role = ParameterRole::slstm_recurrent});
  specs.push_back({.name = "xlstm.slstm_cell._bias_",
                   .shape = {H, 4, K},
                   .initialize = bias_of_cell(config, block),
                   .product_type = {},
                   .role = ParameterRole::slstm_bias});
  if (config.group_norm_weight)
    specs.push_back({.name = "xlstm.group_norm.weight", .shape = {D}, .initialize = constant(0.0), .group = "norm", .product_type = {}});
  if (config.has_ffn) {
    for (ParameterSpec& spec : feed_forward_parameters(config)) specs.push_back(std::move(spec));
  }
  return specs;
}

class SlstmMixer final : public Mixer {
 public:
  SlstmMixer(const StudentConfig& config, int64_t block)
      : D_(config.embedding_dim),
        H_(config.slstm_num_heads),
        taps_(config.slstm_conv1d_kernel_size),
        P_(config.has_ffn ? config.ffn_dim() : 0),
        ffn_act_fn_(config.ffn_act_fn),
        parameters_(parameters_of(config, block)),
        bind_(parameters_) {}

  [[nodiscard]] std::string_view kind() const override { return "slstm"; }
  [[nodiscard]] const std::vector<ParameterSpec>& parameters() const override { return parameters_; }

  [[nodiscard]] Tensor forward(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call,
                               MixerState* mixer_state) const override {
    const int64_t B = x_BSD.size(0), S = x_BSD.size(1), D = D_, H = H_, K = D / H;
    const Weights w = bind_(&weights), products = bind_(call.products);
    auto* state = own_state<SlstmMixerState>(mixer_state);
    const auto [stream_BSD, u_BSD] = ops::add_norm(x_BSD, {}, w.norm, cell_dtype(call.compute_dtype));
    Tensor c_BSD = u_BSD, x_gates_BSD = u_BSD;
    if (w.conv_weight.defined()) {
      ops::CausalConvOutput conv =
          ops::causal_conv_silu(u_BSD, w.conv_weight, w.conv_bias, state ? state->conv_tail_BJF : Tensor(), call.is_start_BS);
      c_BSD = std::move(conv.y_BSF);
      x_gates_BSD = std::move(conv.x_BSF);
      if (state) state->conv_tail_BJF = std::move(conv.state_BJF);
    }
    const Tensor wx_NHGK = ops::slstm_gate_projection(
        c_BSD.view({B * S, D}), x_gates_BSD.view({B * S, D}), w.input_gate, w.forget_gate, w.cell_gate, w.output_gate,
        cell_dtype(call.compute_dtype), {products.input_gate, products.forget_gate, products.cell_gate, products.output_gate});
    ops::SlstmOutput cell =
        ops::slstm_scan(wx_NHGK.view({B, S, H, 4, K}), w.recurrent, w.bias, state ? state->cell : ops::SlstmState{}, call.is_start_BS);
    if (state) state->cell = std::move(cell.state);
    // Where the configuration has no norm weight: the one that multiplies by one.
    const Tensor group_norm = w.group_norm.defined() ? w.group_norm : at::zeros({D}, x_BSD.options());
    const Tensor y_ND = ops::residual_layer_norm(cell.y_BSHK.reshape({B * S, D}), group_norm, H);
    const Tensor stream_ND = stream_BSD.view({B * S, D});
    const Tensor out_ND = w.ffn_norm.defined() ? feed_forward(w, products, stream_ND, y_ND, call) : stream_ND + y_ND;
    return out_ND.view({B, S, D});
  }

  [[nodiscard]] std::unique_ptr<MixerState> zero_state(int64_t batch, at::ScalarType compute_dtype,
                                                       at::TensorOptions options) const override {
    auto state = std::make_unique<SlstmMixerState>();
    if (taps_ > 0) state->conv_tail_BJF = at::zeros({batch, taps_ - 1, D_}, options.dtype(cell_dtype(compute_dtype)));
    for (Tensor* tensor : {&state->cell.hidden_BHK, &state->cell.cell_BHK, &state->cell.normalizer_BHK, &state->cell.stabilizer_BHK})
      *tensor = at::zeros({batch, H_, D_ / H_}, options);
    return state;
  }

  // Input, norm, conv, four gate products, cell output, group norm; feed-forward: input, norm, both halves, their product. Cell: y c n m,
  // gates.
  [[nodiscard]] KeptValues kept_values() const override { return {.compute = 9 * D_ + (P_ > 0 ? 2 * D_ + 4 * P_ : 0), .full = 8 * D_}; }

 private:
  // Of the residual stream plus what the cell adds to it.
  [[nodiscard]] Tensor feed_forward(const Weights& w, const Weights& products, const Tensor& stream_ND, const Tensor& added_ND,
                                    const MixerCall& call) const {
    const auto [x_ND, u_ND] = ops::add_norm(stream_ND, added_ND, w.ffn_norm, call.compute_dtype);
    const auto [gate_NP, value_NP] = ops::split_linear(u_ND, {w.ffn_up, products.ffn_up}, w.ffn_up_bias, call.compute_dtype);
    const Tensor hidden_NP = ops::gated_activation(gate_NP, value_NP, ffn_act_fn_);
    return ops::residual_linear(x_ND, hidden_NP, {w.ffn_down, products.ffn_down}, w.ffn_down_bias, call.compute_dtype);
  }

  int64_t D_, H_, taps_, P_;
  config::Activation ffn_act_fn_;
  std::vector<ParameterSpec> parameters_;
  WeightBinder<Weights> bind_;
};

}  // namespace

void SlstmMixerState::for_each(const std::function<void(Tensor&)>& visit) {
  for (Tensor* tensor : {&conv_tail_BJF, &cell.hidden_BHK, &cell.cell_BHK, &cell.normalizer_BHK, &cell.stabilizer_BHK}) {
    if (tensor->defined()) visit(*tensor);
  }
}

std::unique_ptr<const Mixer> make_slstm(const StudentConfig& config, int64_t block) {
  return std::make_unique<SlstmMixer>(config, block);
}

}  // namespace distil_xlstm::student
