#include "student/convert/student.h"

#include <algorithm>
#include <functional>
#include <map>

#include "base/error.h"
#include "base/text.h"
#include "nn/matrix.h"
#include "nn/stored.h"
#include "student/block_student.h"
#include "student/convert/config.h"
#include "student/convert/large_form.h"
#include "student/convert/layer.h"
#include "student/convert/python_form.h"
#include "student/convert/weights.h"

namespace distil_xlstm::student {
namespace {

std::vector<ParameterSpec> specs_of(const ConvertConfig& config) {
  std::vector<ParameterSpec> specs;
  for (int64_t layer = 0; layer < config.decoder.num_layers; ++layer) {
    const auto made = make_convert_layer(config, config.mixer_of(layer));
    for (ParameterSpec spec : made->parameters()) {
      spec.name = convert_layer_prefix(layer) + spec.name;
      specs.push_back(std::move(spec));
    }
  }
  specs.push_back({.name = "model.norm.weight",
                   .shape = {config.decoder.hidden_size},
                   .initialize = constant(1.0),
                   .group = "norm",
                   .product_type = {},
                   .start = "copied"});
  return specs;
}

class ConvertShape final : public StudentShape {
 public:
  explicit ConvertShape(ConvertConfig config) : config_(std::move(config)) {}

  [[nodiscard]] const ConvertConfig& config() const { return config_; }
  [[nodiscard]] std::string_view kind() const override { return "convert"; }
  [[nodiscard]] int64_t num_layers() const override { return config_.decoder.num_layers; }
  [[nodiscard]] int64_t hidden_size() const override { return config_.decoder.hidden_size; }
  [[nodiscard]] int64_t vocab_size() const override { return config_.decoder.vocab_size; }
  [[nodiscard]] int64_t num_trainable_parameters() const override {
    int64_t count = 0;
    for (const auto& spec : specs_of(config_)) count += spec.num_elements();
    return count;
  }
  [[nodiscard]] std::vector<KeptValues> kept_values() const override {
    std::vector<KeptValues> values;
    for_each_layer([&](const ConvertLayer& layer) { values.push_back(layer.kept_values()); });
    return values;
  }
  [[nodiscard]] int64_t state_bytes(int64_t num_tokens, at::ScalarType compute_dtype) const override {
    int64_t sum = 0;
    for_each_layer([&](const ConvertLayer& layer) { sum += layer.state_bytes(num_tokens, compute_dtype); });
    return sum;
  }
  [[nodiscard]] bool keeps_teacher_layers() const override { return true; }
  [[nodiscard]] int64_t num_mixing_matrices() const override {
    int64_t count = 0;
    for_each_layer([&](const ConvertLayer& layer) { count += layer.has_mixing_matrix() ? 1 : 0; });
    return count;
  }
  [[nodiscard]] std::vector<ParameterInfo> parameters() const override { return parameter_infos(specs_of(config_)); }
  [[nodiscard]] bool has_constant_state() const override { return config_.num_attention_layers() == 0 || config_.attention_window > 0; }
  [[nodiscard]] std::string description() const override;
  [[nodiscard]] json to_json(std::string_view layout) const override {
    json config = config_.to_json();
    if (layout == kLargeLayout) config["distil_xlstm"]["layout"] = layout;
    return config;
  }
  [[nodiscard]] std::vector<std::string> differences(const StudentShape& found) const override {
    if (found.kind() != kind()) return {fmt::format("  kind: [student] says {}, there it is {}", kind(), found.kind())};
    ConvertConfig same = dynamic_cast<const ConvertShape&>(found).config();
    same.context_length = config_.context_length;
    same.chunk_size = config_.chunk_size;
    same.teacher_config = config_.teacher_config;  // what of it fixes shapes stands beside it, or in the weights
    std::vector<std::string> lines;
    const auto function_of = [](const nn::TransformerConfig& c) {
      return fmt::format("{} heads of {}, rms_norm_eps {}, rope_theta {} (scaling {}, factor {})", c.num_heads, c.head_dim, c.rms_norm_eps,
                         c.rope.theta, static_cast<int>(c.rope.scaling), c.rope.factor);
    };
    if (function_of(config_.decoder) != function_of(same.decoder))
      lines.push_back(fmt::format("  the teacher gives {}, there it is {}", function_of(config_.decoder), function_of(same.decoder)));
    const json here = config_.to_json(), there = same.to_json();
    for (const auto& change : json::diff(here, there)) {
      const json::json_pointer at(change["path"].get<std::string>());
      lines.push_back(fmt::format("  {}: [student] and the teacher give {}, there it is {}", at.to_string().substr(1), here[at].dump(),
                                  there[at].dump()));
    }
    return lines;
  }
  [[nodiscard]] std::unique_ptr<Student> fresh(const StudentPlace& place, uint64_t seed) const override;

 private:
  void for_each_layer(const std::function<void(const ConvertLayer&)>& visit) const {
    for (int64_t layer = 0; layer < num_layers(); ++layer) visit(*make_convert_layer(config_, config_.mixer_of(layer)));
  }

  ConvertConfig config_;
};

std::string rope_description(const ConvertConfig& config) {
  if (!config.has_rope) return ", no rotary positions";
  return config.rope_max_wavelength > 0 ? fmt::format(", rotary positions up to {:g} tokens a turn", config.rope_max_wavelength) : "";
}

std::string ConvertShape::description() const {
  const int64_t kept = config_.num_attention_layers();
  std::vector<std::string> others;  // each once, as the layers take them
  bool has_features = false;
  for_each_layer([&](const ConvertLayer& layer) {
    const std::string name(layer.kind());
    if (name != kKeptAttention && std::ranges::find(others, name) == others.end()) others.push_back(name);
    has_features = has_features || layer.has_features();
  });
  const std::string replaced = fmt::format("attention replaced by {} of {} heads{}{}", join(others, ", "), config_.decoder.num_heads,
                                           has_features ? fmt::format(", {} features of a head", config_.feature_size()) : "",
                                           has_features ? rope_description(config_) : "");
  if (kept == 0) return fmt::format("the teacher's {} layers, {}", num_layers(), replaced);
  const std::string seen = config_.attention_window == 0  ? "whole documents, so that the state grows with the text"
                           : config_.attention_sinks == 0 ? fmt::format("the last {} tokens", config_.attention_window)
                                                          : fmt::format("the last {} tokens and a document's first {}",
                                                                        config_.attention_window, config_.attention_sinks);
  const bool is_all = kept == num_layers();
  return fmt::format("the teacher's {} layers, {}attention kept in {} of them over {}{}{}", num_layers(),
                     is_all ? "" : "a hybrid: ", is_all ? "all" : std::to_string(kept), seen, is_all ? "" : "; elsewhere ",
                     is_all ? "" : replaced);
}

class ConvertStudent final : public BlockStudent {
 public:
  ConvertStudent(const ConvertConfig& config, BlockParts parts) : BlockStudent(std::move(parts)), shape_(config) {}

  [[nodiscard]] const StudentShape& shape() const override { return shape_; }
  [[nodiscard]] bool keeps_mixer(int64_t layer) const override {
    return layer_of(*parts().mixers.at(static_cast<size_t>(layer))).is_teachers();
  }
  [[nodiscard]] bool starts_from_rows() const override {
    return std::ranges::any_of(parts().mixers, [](const auto& mixer) { return layer_of(*mixer).starts_from_rows(); });
  }
  void start_from_rows(const std::vector<Tensor>& layer_inputs_BSD, const Tensor& is_start_BS, const nn::LanguageModel* teacher) override {
    const at::NoGradGuard no_grad;
    for (size_t layer = 0; layer < parts().mixers.size(); ++layer) {
      const auto index = static_cast<int64_t>(layer);
      TeacherRows rows{layer_inputs_BSD.at(layer), is_start_BS, {}};
      const std::string prefix = convert_layer_prefix(index);
      if (teacher != nullptr) {
        teacher->for_each_weight(
            [&](const std::string& name, const Tensor& tensor) { rows.teacher_weights[name.substr(prefix.size())] = tensor; },
            prefix + "self_attn.");
      }
      layer_of(*parts().mixers[layer]).start_from_teacher(block_weights(index), rows);
    }
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format("converted, {}, {} trainable parameters", shape_.description(),
                       format_parameters(static_cast<double>(shape_.num_trainable_parameters())));
  }
  [[nodiscard]] NamedTensors stored_tensors(std::string_view layout, bool with_frozen) const override {
    NamedTensors out;
    for (const auto& [name, tensor] : parameters()) out.emplace_back(name, tensor.detach().clone());
    if (with_frozen) add_frozen(out);
    return layout == kLargeLayout ? to_large_form(shape_.config(), out) : out;
  }

 protected:
  [[nodiscard]] std::pair<Tensor, Tensor> last_states(const Tensor& x_BSD, const Tensor& weight_D) const override {
    const double eps = shape_.config().decoder.rms_norm_eps;
    return {x_BSD, nn::rms_norm_input(x_BSD, weight_D, eps, nn::ProductType::same_as_weights).values};
  }
  [[nodiscard]] std::unique_ptr<BlockStudent> with_parameters(BlockParts parts) const override {
    return std::make_unique<ConvertStudent>(shape_.config(), std::move(parts));
  }

 private:
  static const ConvertLayer& layer_of(const Mixer& mixer) { return dynamic_cast<const ConvertLayer&>(mixer); }

  ConvertShape shape_;
};

std::unique_ptr<ConvertStudent> assemble(const ConvertConfig& config, NamedTensors parameters, const StudentPlace& place) {
  check_frozen("embedding", place.embedding_VD, config.decoder.vocab_size, config.decoder.hidden_size);
  check_frozen("head", place.head_VD, config.decoder.vocab_size, config.decoder.hidden_size);
  const Tensor embedding_VD = place.embedding_VD.detach().to(place.device);
  const bool shares = config.decoder.is_tied || place.head_VD.is_same(place.embedding_VD);
  BlockParts parts{.mixers = {},
                   .specs = specs_of(config),
                   .parameters = std::move(parameters),
                   .embedding_VD = embedding_VD,
                   .head_VD = shares ? embedding_VD : place.head_VD.detach().to(place.device),
                   .is_tied = config.decoder.is_tied,
                   .embedding = "token_embedding",
                   .block_prefix = "model.layers.",
                   .last_norm = "model.norm"};
  std::map<std::string, std::shared_ptr<const ConvertLayer>> layers;  // they have no tensors: one serves all layers of its kind
  for (const auto& mixer : config.mixers) layers[mixer] = make_convert_layer(config, mixer);
  for (int64_t layer = 0; layer < config.decoder.num_layers; ++layer) parts.mixers.push_back(layers.at(config.mixer_of(layer)));
  return std::make_unique<ConvertStudent>(config, std::move(parts));
}

constexpr const char *kEmbedding = "token_embedding.weight", *kHead = "lm_head.weight";

// Under the names of this program, whichever layout the file has.
std::shared_ptr<io::WeightSource> own_weights(const ConvertConfig& config, const io::ModelFiles& files) {
  const std::string where = files.path.string() + " (configuration): distil_xlstm";
  const auto layout = get_or<std::string>(files.config.at("distil_xlstm"), "layout", "", where);
  if (layout.empty()) return files.weights;
  if (layout != kLargeLayout) throw ConfigError("{}: layout = \"{}\" is not known to this version", where, layout);
  if (!is_large(config))
    throw ConfigError("{}: layout = \"{}\" is that of students with mixers = \"{}\" throughout", where, layout, kLargeMixer);
  check_large_config(config, files.config, files.path.string() + " (configuration)");
  std::map<std::string, Shape> shapes = {{kEmbedding, {config.decoder.vocab_size, config.decoder.hidden_size}}};
  shapes[kHead] = shapes[kEmbedding];
  for (const auto& spec : specs_of(config)) shapes[spec.name] = spec.shape;
  return from_large_form(config, shapes, files.weights);
}

std::unique_ptr<Student> load_convert(io::ModelFiles files, StudentPlace place) {
  check_parameter_dtype(place.parameter_dtype);
  const ConvertConfig config = ConvertConfig::from_json(files.config, files.path.string() + " (configuration)");
  const auto specs = specs_of(config);
  files.weights = own_weights(config, files);
  std::vector<std::string> missing, unexpected;
  std::vector<std::string> known = {kEmbedding, kHead};
  for (const auto& spec : specs) {
    known.push_back(spec.name);
    if (!files.weights->contains(spec.name)) missing.push_back(spec.name);
  }
  if (!place.embedding_VD.defined() && !files.weights->contains(kEmbedding)) missing.emplace_back(kEmbedding);
  const bool needs_head = !place.head_VD.defined() && !config.decoder.is_tied;
  if (needs_head && !files.weights->contains(kHead)) missing.emplace_back(kHead);
  std::ranges::sort(known);
  for (const auto& name : files.weights->names()) {
    if (!std::ranges::binary_search(known, name)) unexpected.push_back(name);
  }
  nn::check_names(files.weights->origin(), missing, unexpected);
  NamedTensors parameters;
  for (const auto& spec : specs) {
    const Tensor stored = nn::read_stored(files.weights, spec.name);
    if (stored.sizes() != at::IntArrayRef(spec.shape)) {
      throw DataError("{}: tensor '{}' is [{}], config.json asks for [{}]", files.weights->origin(), spec.name,
                      fmt::join(stored.sizes(), ", "), fmt::join(spec.shape, ", "));
    }
    parameters.emplace_back(spec.name, stored.to(place.device, place.parameter_dtype, /*non_blocking=*/false, /*copy=*/true));
  }
  // On a CPU products are in float32: converted here once, not for each token.
  const auto read_frozen = [&](const char* name) {
    const Tensor stored = nn::read_stored(files.weights, name);
    return place.device.is_cpu() && c10::elementSize(stored.scalar_type()) < 4 ? stored.to(at::kFloat) : stored;
  };
  if (!place.embedding_VD.defined()) place.embedding_VD = read_frozen(kEmbedding);
  if (!place.head_VD.defined()) place.head_VD = needs_head ? read_frozen(kHead) : place.embedding_VD;
  return assemble(config, std::move(parameters), place);
}

std::unique_ptr<Student> ConvertShape::fresh(const StudentPlace& place, uint64_t seed) const {
  check_parameter_dtype(place.parameter_dtype);
  if (place.teacher == nullptr) throw ValueError("student: a converted one starts from its teacher's weights, and none was given");
  NamedTensors parameters = draw_parameters(specs_of(config_), seed, place.device, place.parameter_dtype);
  copy_from_teacher(config_, *place.teacher, parameters);
  return assemble(config_, std::move(parameters), place);
}

}  // namespace

StudentKind convert_kind() {
  return {
      .derive = [](const config::StudentSettings& settings, const teacher::TeacherShape& teacher,
                   int64_t context_length) { return std::make_unique<ConvertShape>(derive_convert(settings, teacher, context_length)); },
      .read = [](const json& config,
                 const std::string& where) { return std::make_unique<ConvertShape>(ConvertConfig::from_json(config, where)); },
      .load = load_convert,
      .ignored_keys = {"num_blocks", "num_heads", "slstm_at", "qkv_proj_blocksize", "mlstm_proj_factor", "ffn_proj_factor", "ffn_act_fn",
                       "bias_init", "recurrent_weight_init", "slstm_layout"},
      .python_form = [](const StudentShape& shape) { return convert_python_form(dynamic_cast<const ConvertShape&>(shape).config()); }};
}

}  // namespace distil_xlstm::student
