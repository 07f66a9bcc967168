#include "student/convert/weights.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <utility>

#include "base/error.h"
#include "ops/causal_conv.h"

namespace distil_xlstm::student {
namespace {

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

}  // namespace

Initializer identity_taps(int64_t taps) {
  return [=](Random&, std::span<double> out) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = (static_cast<int64_t>(i) + 1) % taps == 0 ? 1.0 : 0.0;
  };
}

Tensor for_each_query(const Tensor& x, int64_t groups, int64_t repeats) {
  std::vector<int64_t> shape = x.sizes().vec();
  const Tensor grouped = x.reshape({groups, 1, -1}).expand({groups, repeats, x.numel() / groups});
  shape[0] *= repeats;
  return grouped.reshape(shape);
}

nn::Matrix matrix_of(const Tensor& weight, const Tensor& product) {
  return product.defined() ? nn::Matrix(weight, product) : nn::Matrix(weight);
}

Tensor projected(const nn::MatrixInput& u, const Tensor& weight, const Tensor& product, const Tensor& bias) {
  return matrix_of(weight, product).product(u, bias.defined() ? bias.to(u.values.scalar_type()) : bias);
}

Tensor convolved(const Tensor& x_BSF, const Tensor& taps_FJ, const Tensor& is_start_BS, Tensor* tail_BJF) {
  if (!taps_FJ.defined()) return x_BSF;
  const Tensor before = tail_BJF ? tail_BJF->to(x_BSF.scalar_type()) : Tensor();
  ops::CausalConvOutput out = ops::causal_conv(x_BSF, taps_FJ.unsqueeze(1), before, is_start_BS);
  if (tail_BJF) *tail_BJF = std::move(out.state_BJF);
  return std::move(out.y_BSF);
}

SpecList& SpecList::add(std::string name, Shape shape, std::string group, bool is_product, std::string start, Initializer initialize) {
  specs_.push_back({.name = std::move(name),
                    .shape = std::move(shape),
                    .initialize = std::move(initialize),
                    .group = std::move(group),
                    .decays = is_product,
                    .product_type = is_product ? in_compute_type() : ProductType{},
                    .start = std::move(start)});
  return *this;
}

SpecList& SpecList::add_linear(const std::string& name, int64_t out, int64_t in, const std::string& group, bool has_bias,
                               const std::string& start) {
  add(name + ".weight", {out, in}, group, true, start);
  return has_bias ? add(name + ".bias", {out}, group, false, start) : *this;
}

std::vector<ParameterSpec> layer_parameters(const ConvertConfig& config, SpecList mixer) {
  const auto& decoder = config.decoder;
  const int64_t D = decoder.hidden_size, I = decoder.intermediate_size;
  SpecList specs;
  specs.add("input_layernorm.weight", {D}, "norm", false, "copied");
  std::ranges::move(mixer.all(), std::back_inserter(specs.all()));
  specs.add_linear("self_attn.o_proj", D, config.inner_size(), "attention", decoder.has_o_bias)
      .add("post_attention_layernorm.weight", {D}, "norm", false, "copied")
      .add_linear("mlp.gate_up_proj", 2 * I, D, "feed_forward", decoder.has_mlp_bias)
      .add_linear("mlp.down_proj", D, I, "feed_forward", decoder.has_mlp_bias);
  return std::move(specs.all());
}

SpecList projection_parameters(const ConvertConfig& config, const std::string& start_of_values) {
  const auto& decoder = config.decoder;
  const int64_t D = decoder.hidden_size, E = config.inner_size(), H = decoder.num_heads, K = decoder.head_dim;
  const std::string joined =
      fmt::format("copied{}{}", decoder.num_kv_heads == H ? "" : fmt::format("; k, v of {} heads repeated to {}", decoder.num_kv_heads, H),
                  start_of_values);
  SpecList specs;
  specs.add_linear("self_attn.qkv_proj", 3 * E, D, "attention", decoder.has_qkv_bias, joined);
  if (decoder.has_qk_norm) {
    specs.add("self_attn.q_norm.weight", {K}, "norm", false, "copied");
    specs.add("self_attn.k_norm.weight", {K}, "norm", false, "copied");
  }
  return specs;
}

SpecList cell_parameters(const ConvertConfig& config) {
  const int64_t D = config.decoder.hidden_size, E = config.inner_size(), H = config.decoder.num_heads, K = config.decoder.head_dim;
  const int64_t M = config.feature_size() / 2, J = config.conv1d_kernel_size;
  SpecList specs = projection_parameters(config, config.value_init == config::ValueInit::least_squares ? "; v by least squares" : "");
  if (J > 0) specs.add("mixer.conv.weight", {3 * E, J}, "mixer", false, "identity", identity_taps(J));
  for (const char* name : {"feature_q", "feature_k"})
    specs.add(fmt::format("mixer.{}.weight", name), {H, K, M}, "mixer", false, M > K ? "scaled identities, noise" : "scaled identity",
              feature_start(H, K, M));
  const bool looks_back = config.gate_init == config::GateInit::look_back;
  specs.add("mixer.igate.weight", {H, D}, "mixer", false, "0")
      .add("mixer.igate.bias", {H}, "mixer", false, "0")
      .add("mixer.fgate.weight", {H, D}, "mixer", false, "0")
      .add("mixer.fgate.bias", {H}, "mixer", false, looks_back ? "the teacher's look-back" : "3 to 8",
           linspace(3.0, 8.0))  // memories of 20 to 3 000 tokens
      .add("mixer.ogate.weight", {E, D}, "mixer", true, "0")
      .add("mixer.ogate.bias", {E}, "mixer", false, "4", constant(4.0));  // near open
  if (config.has_head_norm) specs.add("mixer.head_norm.weight", {E}, "mixer", false, "nearest to attention's heads", constant(1.0));
  return specs;
}

std::string convert_layer_prefix(int64_t layer) {
  return fmt::format("model.layers.{}.", layer);
}

void copy_from_teacher(const ConvertConfig& config, const nn::LanguageModel& teacher, NamedTensors& parameters) {
  const at::NoGradGuard no_grad;
  const int64_t G = config.decoder.num_kv_heads, repeats = config.decoder.num_heads / G;
  const std::map<std::string, std::vector<std::string>> joined = {{"qkv_proj", {"q_proj", "k_proj", "v_proj"}},
                                                                  {"gate_up_proj", {"gate_proj", "up_proj"}}};
  std::map<std::string, Tensor> stored;
  const auto find = [&](const std::string& name) -> const Tensor& {
    const auto found = stored.find(name);
    if (found == stored.end()) throw DataError("the teacher has no tensor '{}' for the student to start from", name);
    return found->second;
  };
  for (int64_t layer = 0; layer <= config.decoder.num_layers; ++layer) {
    const std::string prefix = layer < config.decoder.num_layers ? convert_layer_prefix(layer) : "model.norm.";
    stored.clear();
    teacher.for_each_weight([&](const std::string& name, const Tensor& tensor) { stored[name] = tensor; }, prefix);
    for (auto& [name, parameter] : parameters) {
      if (!name.starts_with(prefix) || name.starts_with(prefix + "mixer.")) continue;
      std::vector<std::string> names{name};
      for (const auto& [whole, of_parts] : joined) {
        const size_t at = name.find(whole);
        if (at == std::string::npos) continue;
        names.clear();
        for (const auto& part : of_parts) names.push_back(std::string(name).replace(at, whole.size(), part));
      }
      std::vector<Tensor> parts;
      int64_t rows = 0;
      for (const auto& part : names) rows += parts.emplace_back(find(part)).size(0);
      for (size_t i = 0; rows != parameter.size(0) && i < names.size(); ++i) {
        const bool is_grouped = names[i].find(".k_proj.") != std::string::npos || names[i].find(".v_proj.") != std::string::npos;
        if (is_grouped) parts[i] = for_each_query(parts[i], G, repeats);
      }
      parameter.copy_(parts.size() == 1 ? parts.front() : at::cat(parts));
    }
  }
}

}  // namespace distil_xlstm::student
