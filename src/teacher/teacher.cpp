#include "teacher/teacher.h"

#include <numeric>

#include "base/error.h"
#include "base/text.h"
#include "ops/device.h"
#include "ops/norm.h"
#include "teacher/families.h"
#include "teacher/weights.h"

namespace distil_xlstm::teacher {
namespace {

// Means over layers that never hold a stack of layers: sums in float32, of a few states at a time on a GPU.
class StateCollector {
 public:
  StateCollector(const TeacherForwardOptions& options, int64_t num_layers) : options_(options), num_layers_(num_layers) {
    const int64_t grouped = std::accumulate(options.group_sizes.begin(), options.group_sizes.end(), int64_t{0});
    if (!options.group_sizes.empty() &&
        (grouped != num_layers || *std::min_element(options.group_sizes.begin(), options.group_sizes.end()) < 1)) {
      throw ValueError("teacher: group_sizes {} must be positive and add up to its {} layers", fmt::join(options.group_sizes, ", "),
                       num_layers);
    }
    for (size_t group = 0; group < options.group_sizes.size(); ++group) {
      group_of_layer_.insert(group_of_layer_.end(), static_cast<size_t>(options.group_sizes[group]), group);
    }
    group_sums_.resize(options.group_sizes.size());
  }

  [[nodiscard]] bool is_needed() const { return options_.collect_mean || options_.collect_all || !group_sums_.empty(); }

  // Whether the state must stay as it is now.
  bool add(int64_t layer, const Tensor& state_BSD) {
    bool waits = false;
    if (options_.collect_mean) waits = mean_sum_.add(state_BSD, layer + 1 == num_layers_);
    if (!group_sums_.empty()) {
      const size_t group = group_of_layer_[static_cast<size_t>(layer)];
      const bool is_last = layer + 1 == num_layers_ || group_of_layer_[static_cast<size_t>(layer) + 1] != group;
      waits = group_sums_[group].add(state_BSD, is_last) || waits;
    }
    if (options_.collect_all) states_.push_back(state_BSD.clone());
    return waits;
  }

  void move_to(TeacherOutput& output) {
    if (options_.collect_mean) output.hidden_mean_BSD = mean_sum_.take().div_(static_cast<double>(num_layers_));
    for (size_t group = 0; group < group_sums_.size(); ++group) {
      output.group_means_BSD.push_back(group_sums_[group].take().div_(static_cast<double>(options_.group_sizes[group])));
    }
    output.hidden_BSD = std::move(states_);
  }

 private:
  const TeacherForwardOptions& options_;
  int64_t num_layers_;
  std::vector<size_t> group_of_layer_;
  ops::StateSum mean_sum_;
  std::vector<ops::StateSum> group_sums_;
  std::vector<Tensor> states_;
};

class TransformerTeacher final : public Teacher {
 public:
  TransformerTeacher(const Family& family, const nn::TransformerConfig& config, nn::TransformerWeights weights)
      : family_(family), transformer_(config, std::move(weights)) {}

  TeacherOutput forward(const Tensor& tokens_BS, const Tensor& is_start_BS, const TeacherForwardOptions& options) override {
    const at::NoGradGuard no_grad;
    StateCollector collector(options, num_layers());
    const bool is_of_blocks = options.target == config::LayerState::block_output;
    const bool replaces_last = options.post_norm_last && is_of_blocks;
    TeacherOutput output;
    nn::LayerVisitors visitors;
    if (options.collect_attention) output.layer_inputs_BSD = {at::embedding(embedding_weight(), tokens_BS.to(device()))};
    if (options.collect_attention || (collector.is_needed() && is_of_blocks)) {
      visitors.block_output = [&](int64_t layer, const Tensor& state_BSD) {
        const bool is_last = layer + 1 == num_layers();
        const bool waits = collector.is_needed() && is_of_blocks && (!replaces_last || !is_last) && collector.add(layer, state_BSD);
        if (!options.collect_attention || is_last) return waits;
        output.layer_inputs_BSD.push_back(state_BSD);
        return true;
      };
    }
    if (options.collect_attention || (collector.is_needed() && !is_of_blocks)) {
      visitors.attention_output = [&](int64_t layer, const Tensor& output_BSD) {
        if (collector.is_needed() && !is_of_blocks) collector.add(layer, output_BSD);
        if (options.collect_attention) output.attention_outputs_BSD.push_back(output_BSD);
      };
    }
    if (options.collect_heads) {
      visitors.attention_heads = [&](int64_t /*layer*/, const Tensor& q_BSHK, const Tensor& k_BSGK) {
        output.queries_BSHK.push_back(q_BSHK);
        output.keys_BSGK.push_back(k_BSGK);
      };
    }
    output.last_hidden_BSD = transformer_.forward(tokens_BS, is_start_BS, visitors);
    if (replaces_last) collector.add(num_layers() - 1, output.last_hidden_BSD);
    collector.move_to(output);
    return output;
  }

  Tensor forward_hidden(const Tensor& tokens_BS, const Tensor& is_start_BS) override {
    return transformer_.forward(tokens_BS, is_start_BS);
  }

  std::unique_ptr<nn::DecodeState> new_state(int64_t batch, int64_t max_tokens) override {
    return std::make_unique<nn::KvCache>(transformer_.config(), batch, max_tokens, transformer_.options());
  }

  Tensor forward_step(const Tensor& tokens_BS, nn::DecodeState& state) override {
    auto* cache = dynamic_cast<nn::KvCache*>(&state);
    if (!cache) throw ValueError("teacher: the decoding state was made by another model");
    return transformer_.forward(tokens_BS, {}, {}, cache);
  }

  void for_each_weight(const nn::TensorVisitor& visit, std::string_view prefix) const override {
    transformer_.for_each_weight(visit, prefix);
  }

  Tensor forward_shown(const Tensor& tokens_BS, const Tensor& is_start_BS, const nn::TensorVisitor& visit) override {
    visit("model.embed_tokens", at::embedding(embedding_weight(), tokens_BS.to(device())));
    const auto layers = [&](int64_t layer, const Tensor& state_BSD) {
      visit(fmt::format("model.layers.{}", layer), state_BSD);
      return false;
    };
    const Tensor hidden_BSD = transformer_.forward(tokens_BS, is_start_BS, {.block_output = layers, .attention_output = {}});
    visit("model.norm", hidden_BSD);
    return hidden_BSD;
  }

  void use_fp8_products() override { transformer_.use_fp8_products(); }

  Tensor logits(const Tensor& hidden) override { return transformer_.logits(hidden); }

  [[nodiscard]] const Tensor& head_weight() const override { return transformer_.weights().head_VD; }
  [[nodiscard]] const Tensor& embedding_weight() const override { return transformer_.weights().embedding_VD; }
  [[nodiscard]] bool has_tied_head() const override { return transformer_.config().is_tied; }
  [[nodiscard]] int64_t vocab_size() const override { return transformer_.config().vocab_size; }
  [[nodiscard]] int64_t hidden_size() const override { return transformer_.config().hidden_size; }
  [[nodiscard]] int64_t num_layers() const override { return transformer_.config().num_layers; }
  [[nodiscard]] int64_t num_parameters() const override { return teacher::num_parameters(transformer_.config()); }
  [[nodiscard]] at::Device device() const override { return transformer_.weights().embedding_VD.device(); }
  [[nodiscard]] std::string precision() const override {
    return precision_name({embedding_weight().scalar_type(), transformer_.has_fp8_products()});
  }
  [[nodiscard]] std::string description() const override {
    return fmt::format("{}, {} layers, {} parameters", family_.title, num_layers(),
                       format_parameters(static_cast<double>(num_parameters())));
  }

 private:
  const Family& family_;
  nn::Transformer transformer_;
};

TeacherShape shape_of(const Family& family, const nn::TransformerConfig& read, const json& config) {
  TeacherShape shape{read};
  shape.model_type = family.model_type;
  shape.num_parameters = num_parameters(read);
  shape.config = config;
  return shape;
}

std::string place_of_config(const io::ModelFiles& files) {
  return fmt::format("{} (configuration)", files.path.string());
}

}  // namespace

TeacherShape teacher_shape(const json& config) {
  const Family& family = find_family(config, "config.json");
  return shape_of(family, read_config(family, config, "config.json"), config);
}

TeacherShape teacher_shape(const io::ModelFiles& files) {
  const std::string where = place_of_config(files);
  const Family& family = find_family(files.config, where);
  return shape_of(family, as_stored(read_config(family, files.config, where), *files.weights), files.config);
}

Precision parse_precision(std::string_view name, at::Device device) {
  if (name != "fp8") return {ops::parse_precision(name, device), false};
  return {device.is_cpu() ? at::kFloat : at::kBFloat16, true};
}

std::string precision_name(const Precision& precision) {
  return precision.has_fp8_products ? "fp8" : ops::precision_name(precision.dtype);
}

Fp8Effect use_fp8_products(Teacher& teacher, const Tensor& tokens_BS, const Tensor& is_start_BS, const Tensor& mask_BS) {
  const at::NoGradGuard no_grad;
  const auto rows = [&] {
    const Tensor hidden_ND = teacher.forward_hidden(tokens_BS, is_start_BS).flatten(0, 1);
    return mask_BS.defined() ? hidden_ND.index({mask_BS.to(hidden_ND.device()).flatten().to(at::kBool)}) : hidden_ND;
  };
  const Tensor exact_ND = rows();
  teacher.use_fp8_products();
  const Tensor fp8_ND = rows();
  Fp8Effect effect{.kl = 0.0, .agreement = 0.0, .num_positions = exact_ND.size(0)};
  constexpr int64_t kPiece = 64;  // positions whose logits are in memory at a time
  for (int64_t first = 0; first < effect.num_positions; first += kPiece) {
    const int64_t count = std::min(kPiece, effect.num_positions - first);
    const Tensor p = teacher.logits(exact_ND.narrow(0, first, count)).log_softmax(-1),
                 q = teacher.logits(fp8_ND.narrow(0, first, count)).log_softmax(-1);
    effect.kl += (p.exp() * (p - q)).sum().item<double>();
    effect.agreement += static_cast<double>((p.argmax(-1) == q.argmax(-1)).sum().item<int64_t>());
  }
  if (effect.num_positions > 0) {
    effect.kl /= static_cast<double>(effect.num_positions);
    effect.agreement /= static_cast<double>(effect.num_positions);
  }
  return effect;
}

std::string description(const Fp8Effect& effect) {
  return fmt::format("KL {:.2g} nats to its products without fp8, the same most likely token at {:.1f} % of {} positions", effect.kl,
                     100.0 * effect.agreement, effect.num_positions);
}

std::unique_ptr<Teacher> load_teacher(const io::ModelFiles& files, at::Device device, at::ScalarType dtype) {
  if (dtype != at::kFloat && dtype != at::kBFloat16 && dtype != at::kHalf) {
    throw ValueError("teacher: precision {} is not supported: use float32, bfloat16 or float16", c10::toString(dtype));
  }
  const std::string where = place_of_config(files);
  const Family& family = find_family(files.config, where);
  const nn::TransformerConfig config = as_stored(read_config(family, files.config, where), *files.weights);
  nn::TransformerWeights weights = load_weights(config, files.weights, device, dtype);
  return std::make_unique<TransformerTeacher>(family, config, std::move(weights));
}

std::unique_ptr<Teacher> random_teacher(const json& config, at::Device device, const Precision& precision, at::Device drawn_on,
                                        double deviation) {
  const Family& family = find_family(config, "config.json");
  const nn::TransformerConfig read = read_config(family, config, "config.json");
  auto teacher = std::make_unique<TransformerTeacher>(family, read, random_weights(read, device, precision.dtype, drawn_on, deviation));
  if (precision.has_fp8_products) teacher->use_fp8_products();
  return teacher;
}

}  // namespace distil_xlstm::teacher
