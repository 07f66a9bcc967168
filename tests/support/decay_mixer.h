// A mixer that is no part of the program, added through its registry: a running sum of what a norm weight scales, with a decay a channel.
#pragma once

#include "student/paper/mixers.h"

namespace distil_xlstm::student {

struct DecayMixerState final : MixerState {
  Tensor sum_BD;
  void for_each(const std::function<void(Tensor&)>& visit) override { visit(sum_BD); }
  [[nodiscard]] std::unique_ptr<MixerState> clone() const override { return std::make_unique<DecayMixerState>(*this); }
};

class DecayMixer final : public Mixer {
 public:
  explicit DecayMixer(const StudentConfig& config)
      : D_(config.embedding_dim),
        parameters_{{.name = "norm.weight", .shape = {D_}, .initialize = constant(1.0), .group = "norm", .product_type = {}},
                    {.name = "decay", .shape = {D_}, .initialize = linspace(0.0, 4.0), .product_type = {}},
                    {.name = "out.weight",
                     .shape = {D_, D_},
                     .initialize = normal(small_std(D_)),
                     .decays = true,
                     .product_type = in_compute_type()}} {}

  [[nodiscard]] std::string_view kind() const override { return "decay"; }
  [[nodiscard]] const std::vector<ParameterSpec>& parameters() const override { return parameters_; }
  [[nodiscard]] Tensor forward(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call, MixerState* state) const override {
    auto* own = own_state<DecayMixerState>(state);
    const Tensor &norm_D = weights[0], decay_D = at::sigmoid(weights[1]), &out_DD = weights[2];
    Tensor sum_BD = own ? own->sum_BD : at::zeros({x_BSD.size(0), D_}, x_BSD.options());
    std::vector<Tensor> sums;
    for (int64_t s = 0; s < x_BSD.size(1); ++s) {
      if (call.is_start_BS.defined()) sum_BD = sum_BD * (1 - call.is_start_BS.select(1, s).to(sum_BD.scalar_type())).unsqueeze(1);
      sum_BD = decay_D * sum_BD + norm_D * x_BSD.select(1, s);
      sums.push_back(sum_BD);
    }
    if (own) own->sum_BD = sum_BD;
    const Tensor sums_BSD = at::stack(sums, 1).to(call.compute_dtype);
    return x_BSD + at::matmul(sums_BSD, out_DD.to(call.compute_dtype).t()).to(x_BSD.scalar_type());
  }
  [[nodiscard]] std::unique_ptr<MixerState> zero_state(int64_t batch, at::ScalarType, at::TensorOptions options) const override {
    auto state = std::make_unique<DecayMixerState>();
    state->sum_BD = at::zeros({batch, D_}, options);
    return state;
  }
  [[nodiscard]] KeptValues kept_values() const override { return {.compute = D_, .full = 2 * D_}; }

 private:
  int64_t D_;
  std::vector<ParameterSpec> parameters_;
};

// Once a process.
inline void add_decay_mixer() {
  static const bool is_added = [] {
    add_mixer_kind("decay", [](const StudentConfig& config, int64_t) { return std::make_unique<const DecayMixer>(config); });
    return true;
  }();
  static_cast<void>(is_added);
}

}  // namespace distil_xlstm::student
