#include "student/convert/large_form.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "base/error.h"
#include "kernels/mlstm_constants.h"
#include "nn/stored.h"
#include "student/convert/weights.h"

namespace distil_xlstm::student {
namespace {

constexpr const char *kEmbedding = "token_embedding", *kHead = "lm_head";

constexpr int64_t kMultiple = 64;  // to which the class rounds the width of all heads when it makes a state

// The class takes a head's width in the state from the rounded width of all heads. Where that gives another than the projections have,
// idle heads stand behind the others until it does: of zeros throughout, they add nothing, and no gradient reaches them.
int64_t num_stored_heads(const ConvertConfig& config) {
  const int64_t K = config.decoder.head_dim;
  int64_t heads = config.decoder.num_heads;
  while ((heads * K + kMultiple - 1) / kMultiple * kMultiple / heads != K) ++heads;
  return heads;
}

// The least double f for which the class gets `size` as int(width * f).
double factor_of(int64_t size, int64_t width) {
  double factor = static_cast<double>(size) / static_cast<double>(width);
  while (std::floor(static_cast<double>(width) * factor) < static_cast<double>(size))
    factor = std::nextafter(factor, std::numeric_limits<double>::infinity());
  return factor;
}

bool uses_bias(const ConvertConfig& config) {
  return config.decoder.has_qkv_bias || config.decoder.has_o_bias || config.decoder.has_mlp_bias;
}

enum class Heads { none, rows, columns };  // the dimension of a weight that goes through the heads
enum class Bias { none, where_used, always };

// A module of ours and where the class has it; of several, ours holds their rows one after the other.
struct Module {
  std::string ours;
  std::vector<std::string> theirs;
  Heads heads = Heads::none;
  Bias bias = Bias::where_used;

  [[nodiscard]] bool has(std::string_view kind, const ConvertConfig& config) const {
    return kind == ".weight" || bias == Bias::always || (bias == Bias::where_used && uses_bias(config));
  }
};

std::vector<Module> modules_of(const ConvertConfig& config) {
  static const std::vector<Module> layer_modules = {
      {"input_layernorm", {"norm_mlstm"}},
      {"self_attn.qkv_proj", {"mlstm_layer.q", "mlstm_layer.k", "mlstm_layer.v"}, Heads::rows},
      {"mixer.igate", {"mlstm_layer.igate_preact"}, Heads::rows, Bias::always},
      {"mixer.fgate", {"mlstm_layer.fgate_preact"}, Heads::rows, Bias::always},
      {"mixer.ogate", {"mlstm_layer.ogate_preact"}, Heads::rows},
      {"mixer.head_norm", {"mlstm_layer.multihead_norm"}, Heads::rows},
      {"self_attn.o_proj", {"mlstm_layer.out_proj"}, Heads::columns},
      {"post_attention_layernorm", {"norm_ffn"}},
      {"mlp.gate_up_proj", {"ffn.proj_up_gate", "ffn.proj_up"}},
      {"mlp.down_proj", {"ffn.proj_down"}},
  };
  std::vector<Module> all = {{kEmbedding, {"backbone.embeddings"}, Heads::none, Bias::none},
                             {kHead, {"lm_head"}, Heads::none, Bias::none},
                             {"model.norm", {"backbone.out_norm"}, Heads::none, Bias::none}};
  for (int64_t layer = 0; layer < config.decoder.num_layers; ++layer) {
    for (Module module : layer_modules) {
      module.ours = convert_layer_prefix(layer) + module.ours;
      for (std::string& name : module.theirs) name = fmt::format("backbone.blocks.{}.{}", layer, name);
      all.push_back(std::move(module));
    }
  }
  return all;
}

Tensor zero_bias(const Tensor& weight) {
  return at::zeros({weight.size(0)}, weight.options());
}

// The dimension of a tensor of the module that goes through the heads; none of the output projection's bias.
std::optional<int64_t> heads_dimension(const Module& module, const Tensor& x) {
  if (module.heads == Heads::rows) return 0;
  return module.heads == Heads::columns && x.dim() == 2 ? std::optional<int64_t>(1) : std::nullopt;
}

Tensor with_idle_heads(const ConvertConfig& config, const Module& module, const Tensor& x) {
  const auto dimension = heads_dimension(module, x);
  const int64_t H = config.decoder.num_heads, idle = num_stored_heads(config) - H;
  if (!dimension || idle == 0) return x;
  std::vector<int64_t> shape = x.sizes().vec();
  shape[static_cast<size_t>(*dimension)] *= idle;
  shape[static_cast<size_t>(*dimension)] /= H;
  return at::cat({x, at::zeros(shape, x.options())}, *dimension);
}

// Throws DataError where the tensor is not as config.json says, or idle heads are not idle.
Tensor without_idle_heads(const ConvertConfig& config, const Module& module, const Tensor& x, const Shape& ours, const std::string& what) {
  const int64_t H = config.decoder.num_heads, heads = num_stored_heads(config);
  Shape expected = ours;
  expected[0] /= static_cast<int64_t>(module.theirs.size());
  const int64_t dimension = module.heads == Heads::columns ? 1 : 0;
  const bool has_heads = module.heads == Heads::rows || (module.heads == Heads::columns && expected.size() == 2);
  const int64_t own = expected[static_cast<size_t>(has_heads ? dimension : 0)];
  if (has_heads) expected[static_cast<size_t>(dimension)] = own / H * heads;
  if (x.sizes() != at::IntArrayRef(expected))
    throw DataError("{} is [{}], config.json asks for [{}]", what, fmt::join(x.sizes(), ", "), fmt::join(expected, ", "));
  if (!has_heads || heads == H) return x;
  if (at::count_nonzero(x.narrow(dimension, own, x.size(dimension) - own)).item<int64_t>() != 0) {
    throw DataError(
        "{} holds more than the {} heads of the student that config.json describes: it was trained elsewhere: open it with "
        "transformers",
        what, H);
  }
  return x.narrow(dimension, 0, own);
}

// Plain tensors on the CPU as if they were a file's.
class TensorWeights final : public io::WeightSource {
 public:
  TensorWeights(std::map<std::string, Tensor> tensors, std::string origin) : tensors_(std::move(tensors)), origin_(std::move(origin)) {}

  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    return names;
  }
  [[nodiscard]] bool contains(std::string_view name) const override { return tensors_.contains(std::string(name)); }
  [[nodiscard]] io::TensorView view(std::string_view name) const override {
    const Tensor& tensor = find(name);
    const auto type = tensor.scalar_type();
    const io::DType dtype = type == at::kDouble     ? io::DType::f64
                            : type == at::kFloat    ? io::DType::f32
                            : type == at::kBFloat16 ? io::DType::bf16
                                                    : io::DType::f16;
    return {std::string(name), dtype, tensor.sizes().vec(), {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()}};
  }
  void read_float(std::string_view name, int64_t begin, int64_t end, float* out) const override {
    const Tensor values = find(name).flatten().narrow(0, begin, end - begin).to(at::kFloat);
    std::copy_n(values.const_data_ptr<float>(), end - begin, out);
  }
  [[nodiscard]] bool is_plain(std::string_view /*name*/) const override { return true; }
  [[nodiscard]] std::string origin() const override { return origin_; }

 private:
  [[nodiscard]] const Tensor& find(std::string_view name) const {
    const auto found = tensors_.find(std::string(name));
    if (found == tensors_.end()) throw DataError("{}: no tensor '{}'", origin_, name);
    return found->second;
  }

  std::map<std::string, Tensor> tensors_;
  std::string origin_;
};

constexpr const char* kExample = R"(from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")  # this directory
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
)";

constexpr const char* kLimits =
    R"(It is an `xLSTMForCausalLM` of `transformers` 5.2 or later: no remote code, and no need of the package `xlstm`.
What that class cannot do:

- Padding on the left. It reads padding as text: give rows of equal length, or one row at a time.
- Carry a float32 state beside half-precision weights. In bfloat16 each token rounds the state: open it in float32
  for long texts.
- Leave logits as they are: it caps them at 1e5, far above any.
)";

}  // namespace

bool is_large(const ConvertConfig& config) {
  for (int64_t layer = 0; layer < config.decoder.num_layers; ++layer) {
    if (config.mixer_of(layer) != kLargeMixer) return false;
  }
  return true;
}

void check_large(const ConvertConfig& config) {
  if (!is_large(config) || !config.decoder.has_qk_norm) return;
  throw ConfigError(
      "student.mixers = \"{}\": its block has no place for the norms that this teacher has on queries and keys: take \"mlstm\" or "
      "\"gated-delta\"; beside one of them in a list it keeps these norms, and opens with the file that export writes",
      kLargeMixer);
}

NamedTensors to_large_form(const ConvertConfig& config, const NamedTensors& tensors) {
  std::map<std::string, Tensor> ours(tensors.begin(), tensors.end());
  ours.emplace(fmt::format("{}.weight", kHead), ours.at(fmt::format("{}.weight", kEmbedding)));  // where they are tied
  NamedTensors stored;
  for (const Module& module : modules_of(config)) {
    for (const char* kind : {".weight", ".bias"}) {
      if (!module.has(kind, config)) continue;
      const auto found = ours.find(module.ours + kind);
      // A bias that the student lacks is one of zeros.
      const Tensor joined = found != ours.end() ? found->second : zero_bias(ours.at(module.ours + ".weight"));
      const auto parts = joined.chunk(static_cast<int64_t>(module.theirs.size()));
      for (size_t i = 0; i < parts.size(); ++i) stored.emplace_back(module.theirs[i] + kind, with_idle_heads(config, module, parts[i]));
    }
  }
  return stored;
}

void check_large_config(const ConvertConfig& config, const json& stored, const std::string& where) {
  const json expected = large_python_form(config).config;
  for (const char* key : {"num_heads", "qk_dim_factor", "v_dim_factor", "use_bias", "norm_eps", "eps", "add_out_norm", "gate_soft_cap",
                          "output_logit_soft_cap", "weight_mode"}) {
    if (!stored.contains(key) || stored.at(key) == expected.at(key)) continue;
    throw ConfigError("{}: {} = {}, and the weights were written with {}: transformers computes another function with it than this program",
                      where, key, stored.at(key).dump(), expected.at(key).dump());
  }
}

std::shared_ptr<io::WeightSource> from_large_form(const ConvertConfig& config, const std::map<std::string, Shape>& shapes,
                                                  const std::shared_ptr<io::WeightSource>& weights) {
  const std::vector<Module> modules = modules_of(config);
  std::vector<std::string> missing, unexpected = weights->names();
  for (const Module& module : modules) {
    for (const char* kind : {".weight", ".bias"}) {
      for (const std::string& name : module.theirs) {
        if (!module.has(kind, config)) continue;
        if (std::erase(unexpected, name + kind) == 0) missing.push_back(name + kind);
      }
    }
  }
  nn::check_names(weights->origin(), missing, unexpected);
  std::map<std::string, Tensor> tensors;
  for (const Module& module : modules) {
    for (const char* kind : {".weight", ".bias"}) {
      if (!module.has(kind, config)) continue;
      const auto known = shapes.find(module.ours + kind);
      const Shape shape = known != shapes.end() ? known->second : Shape{shapes.at(module.ours + ".weight").front()};
      std::vector<Tensor> parts;
      for (const std::string& name : module.theirs) {
        parts.push_back(without_idle_heads(config, module, nn::read_stored(weights, name + kind), shape,
                                           fmt::format("{}: tensor '{}'", weights->origin(), name + kind)));
      }
      const Tensor joined = parts.size() == 1 ? parts.front() : at::cat(parts);
      if (known != shapes.end()) {
        tensors.emplace(module.ours + kind, joined.contiguous());
      } else if (at::count_nonzero(joined).item<int64_t>() != 0) {
        throw DataError(
            "{}: '{}' holds a bias, and the student that config.json describes has none there: it was trained elsewhere: open it "
            "with transformers",
            weights->origin(), module.theirs.front() + kind);
      }
    }
  }
  return std::make_shared<TensorWeights>(std::move(tensors), weights->origin());
}

PythonForm large_python_form(const ConvertConfig& config) {
  const auto& decoder = config.decoder;
  const int64_t heads = num_stored_heads(config);
  const double head_factor = factor_of(heads * decoder.head_dim, decoder.hidden_size);
  return {.config = {{"architectures", {"xLSTMForCausalLM"}},
                     {"model_type", "xlstm"},
                     {"embedding_dim", decoder.hidden_size},
                     {"num_blocks", decoder.num_layers},
                     {"num_heads", heads},
                     {"qk_dim_factor", head_factor},
                     {"v_dim_factor", head_factor},
                     {"ffn_proj_factor", factor_of(decoder.intermediate_size, decoder.hidden_size)},
                     {"ffn_round_up_to_multiple_of", 1},
                     {"use_bias", uses_bias(config)},
                     {"norm_eps", decoder.rms_norm_eps},
                     {"norm_reduction_force_float32", true},
                     {"add_out_norm", true},
                     {"gate_soft_cap", kGateSoftCap},
                     {"output_logit_soft_cap", 1e5},
                     {"weight_mode", "single"},
                     {"mode", "inference"},
                     {"return_last_states", true},
                     {"chunk_size", config.chunk_size},
                     {"eps", kernels::kMlstmEps},
                     {"inference_state_dtype", "float32"},
                     {"autocast_kernel_dtype", "float32"},
                     {"tie_word_embeddings", false}},
          .layout = std::string(kLargeLayout),
          .library = "transformers",
          .opening = "AutoModelForCausalLM.from_pretrained(\"{}\")",
          .example = kExample,
          .limits = kLimits};
}

}  // namespace distil_xlstm::student
