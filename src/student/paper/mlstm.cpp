#include "student/paper/mlstm.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "ops/blockdiag.h"
#include "ops/causal_conv.h"
#include "ops/gated.h"
#include "ops/mlstm_gates.h"
#include "ops/norm.h"
#include "student/mlstm_cell.h"

namespace distil_xlstm::student {
namespace {

struct Weights {
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

// The compute type, except where the kernel of q, k and v reads its small weights in float32.
ProductType of_block_diagonal(int64_t block_size) {
  return [block_size](const Tensor& parameter, at::ScalarType compute_dtype) {
    return ops::qkv_takes_float32_weights(parameter, block_size) ? parameter.scalar_type() : compute_dtype;
  };
}

std::vector<ParameterSpec> parameters_of(const StudentConfig& config) {
  const int64_t D = config.embedding_dim, I = config.mlstm_inner_dim(), H = config.mlstm_num_heads;
  const int64_t block_size = config.qkv_proj_blocksize, taps = config.mlstm_conv1d_kernel_size;
  std::vector<ParameterSpec> specs;
  const auto add = [&](std::string name, Shape shape, Initializer initialize, bool decays, ProductType product_type = {}) {
    specs.push_back({.name = std::move(name),
                     .shape = std::move(shape),
                     .initialize = std::move(initialize),
                     .decays = decays,
                     .product_type = std::move(product_type)});
  };
  const auto add_norm = [&](std::string name, int64_t width) {
    specs.push_back({.name = std::move(name), .shape = {width}, .initialize = constant(0.0), .group = "norm", .product_type = {}});
  };
  const auto add_linear = [&](const std::string& name, const Shape& shape, double deviation) {
    add(name + ".weight", shape, normal(deviation), true, in_compute_type());
    if (config.bias) add(name + ".bias", {shape[0]}, constant(0.0), false, in_compute_type());
  };
  add_norm("xlstm_norm.weight", D);
  add("xlstm.learnable_skip", {I}, constant(1.0), false);
  add_linear("xlstm.proj_up", {2 * I, D}, small_std(D));
  for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
    const auto product_type = of_block_diagonal(block_size);
    add(fmt::format("xlstm.{}.weight", name), {I / block_size, block_size, block_size}, normal(small_std(D)), true, product_type);
    if (config.bias) add(fmt::format("xlstm.{}.bias", name), {I}, constant(0.0), false, product_type);
  }
  const Initializer of_convolution = uniform(1.0 / std::sqrt(static_cast<double>(taps)));
  add("xlstm.conv1d.conv.weight", {I, 1, taps}, of_convolution, true);
  add("xlstm.conv1d.conv.bias", {I}, of_convolution, false);
  add("xlstm.mlstm_cell.igate.weight", {H, 3 * I}, constant(0.0), true);
  add("xlstm.mlstm_cell.igate.bias", {H}, normal(0.1), false);
  add("xlstm.mlstm_cell.fgate.weight", {H, 3 * I}, constant(0.0), true);
  add("xlstm.mlstm_cell.fgate.bias", {H}, linspace(3.0, 6.0), false);
  add_norm("xlstm.mlstm_cell.outnorm.weight", I);
  add_linear("xlstm.proj_down", {D, I}, wang_std(D, config.num_blocks));
  return specs;
}

class MlstmMixer final : public Mixer {
 public:
  explicit MlstmMixer(const StudentConfig& config)
      : D_(config.embedding_dim),
        I_(config.mlstm_inner_dim()),
        H_(config.mlstm_num_heads),
        taps_(config.mlstm_conv1d_kernel_size),
        chunk_size_(config.chunk_size),
        parameters_(parameters_of(config)),
        bind_(parameters_) {}

  [[nodiscard]] std::string_view kind() const override { return "mlstm"; }
  [[nodiscard]] const std::vector<ParameterSpec>& parameters() const override { return parameters_; }

  [[nodiscard]] Tensor forward(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call,
                               MixerState* mixer_state) const override {
    const int64_t B = x_BSD.size(0), S = x_BSD.size(1), D = D_, N = B * S;
    const int64_t I = I_, H = H_, K = I / H;
    const Weights w = bind_(&weights), products = bind_(call.products);
    auto* state = own_state<MlstmMixerState>(mixer_state);
    const auto [stream_ND, u_ND] = ops::add_norm(x_BSD.view({N, D}), {}, w.norm, call.compute_dtype);
    const auto [inner_NI, z_NI] = ops::split_linear(u_ND, {w.up, products.up}, w.up_bias, call.compute_dtype);
    ops::CausalConvOutput conv = ops::causal_conv_silu(inner_NI.view({B, S, I}), w.conv_weight, w.conv_bias,
                                                       state ? state->conv_tail_BJF : Tensor(), call.is_start_BS);
    if (state) state->conv_tail_BJF = std::move(conv.state_BJF);
    const auto [qkv_NI, c_NI] = ops::qkv_projection(conv.y_BSF.view({N, I}), conv.x_BSF.view({N, I}), {w.q, w.q_bias}, {w.k, w.k_bias},
                                                    {w.v, w.v_bias}, cell_dtype(call.compute_dtype));
    const ops::MlstmGates gates =
        ops::mlstm_gate_projection(qkv_NI, {w.input_gate, w.input_gate_bias, w.forget_gate, w.forget_gate_bias}, {B, S, H, K});
    const Tensor h_BSHK = run_mlstm_cell({.q_BSHK = gates.qkv[0],
                                          .k_BSHK = gates.qkv[1],
                                          .v_BSHV = gates.qkv[2],
                                          .igate_BSH = gates.input_NH.view({B, S, H}),
                                          .fgate_BSH = gates.forget_NH.view({B, S, H}),
                                          .is_start_BS = call.is_start_BS},
                                         call.form, chunk_size_, state ? &state->cell : nullptr);
    const Tensor h_NI = ops::residual_layer_norm(h_BSHK.reshape({N, I}), w.out_norm, H);
    const Tensor gated_NI = ops::skip_gate(h_NI, w.skip, c_NI, z_NI);
    return ops::residual_linear(stream_ND, gated_NI, {w.down, products.down}, w.down_bias, call.compute_dtype).view({B, S, D});
  }

  [[nodiscard]] std::unique_ptr<MixerState> zero_state(int64_t batch, at::ScalarType compute_dtype,
                                                       at::TensorOptions options) const override {
    const int64_t K = I_ / H_;
    auto state = std::make_unique<MlstmMixerState>();
    state->conv_tail_BJF = at::zeros({batch, taps_ - 1, I_}, options.dtype(compute_dtype));
    state->cell = {at::zeros({batch, H_, K, K}, options), at::zeros({batch, H_, K}, options), at::zeros({batch, H_}, options)};
    return state;
  }

  // Input, norm, both halves of proj_up, conv, q k v, h, norm, skip, gated product. Cell: one matrix state a chunk and head.
  [[nodiscard]] KeptValues kept_values() const override {
    return {.compute = 2 * D_ + 10 * I_, .full = I_ * (I_ / H_) / std::max<int64_t>(chunk_size_, 1) + 6 * H_};
  }

 private:
  int64_t D_, I_, H_, taps_, chunk_size_;
  std::vector<ParameterSpec> parameters_;
  WeightBinder<Weights> bind_;
};

}  // namespace

void MlstmMixerState::for_each(const std::function<void(Tensor&)>& visit) {
  if (conv_tail_BJF.defined()) visit(conv_tail_BJF);
  for_each_tensor(cell, visit);
}

std::unique_ptr<const Mixer> make_mlstm(const StudentConfig& config, int64_t /*block*/) {
  return std::make_unique<MlstmMixer>(config);
}

}  // namespace distil_xlstm::student
