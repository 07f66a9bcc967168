#include "student/paper/student.h"

#include <ATen/Parallel.h>
#include <spdlog/spdlog.h>

#include <mutex>
#include <optional>

#include "base/error.h"
#include "base/text.h"
#include "ops/device.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "student/paper/mixers.h"
#include "student/paper/shape.h"
#include "student/paper/stored.h"
#include "student/state.h"

namespace distil_xlstm::student {

namespace {

// Draws every parameter from a stream of its own, in double precision on the CPU: the numbers are the same for every device.
NamedTensors fresh_parameters(const StudentConfig& config, uint64_t seed, at::Device device, at::ScalarType dtype) {
  const std::vector<ParameterSpec> specs = parameter_specs(config);
  NamedTensors parameters(specs.size());
  at::parallel_for(0, static_cast<int64_t>(specs.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ParameterSpec& spec = specs[static_cast<size_t>(i)];
      Random random(seed, static_cast<uint64_t>(i));
      const Tensor values = at::empty(spec.shape, at::kDouble);
      spec.initialize(random, {values.data_ptr<double>(), static_cast<size_t>(spec.num_elements())});
      parameters[static_cast<size_t>(i)] = {spec.name, values.to(device, dtype)};
    }
  });
  return parameters;
}

class XlstmStudent final : public PaperStudent {
 public:
  XlstmStudent(StudentConfig config, NamedTensors parameters, Tensor embedding_VD, Tensor head_VD)
      : shape_(std::move(config)),
        parameters_(std::move(parameters)),
        embedding_VD_(std::move(embedding_VD)),
        head_VD_(std::move(head_VD)),
        mixers_(make_mixers(config_)) {
    for (auto& [name, tensor] : parameters_) tensor.requires_grad_();
    auto next = parameters_.begin();  // in the order of parameter_specs
    for (const auto& mixer : mixers_) {
      MixerWeights weights;
      for (size_t i = 0; i < mixer->parameters().size(); ++i) weights.push_back((next++)->second);
      blocks_.push_back(std::move(weights));
    }
    if (config_.add_post_blocks_norm) post_norm_ = next->second;
    dtype_ = parameters_.front().second.scalar_type();
    step_dtype_ = dtype_;
  }

  StudentOutput forward(const Tensor& tokens_BS, const Tensor& is_start_BS, const StudentForwardOptions& options,
                        nn::DecodeState* decode_state) override {
    check_input(tokens_BS, is_start_BS);
    StudentState* state = checked_state(decode_state, tokens_BS.size(0));
    MixerCall call{is_start_BS, effective_dtype(options.compute_dtype), options.mlstm_form};
    if (is_start_BS.defined()) call.is_start_BS = is_start_BS.to(device(), at::kByte);

    const bool records = at::GradMode::is_enabled();
    const std::vector<MixerWeights>& converted = converted_blocks(call.compute_dtype);
    const std::vector<MixerWeights>& blocks = records ? blocks_ : converted;
    const bool recomputes = records && options.activation_checkpointing;
    StudentOutput output;
    Tensor x_BSD = at::embedding(embedding_VD_, tokens_BS.to(device())).to(dtype_);
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (options.layer_inputs_BSD != nullptr && i > 0) x_BSD = options.layer_inputs_BSD->at(i - 1).to(dtype_);
      MixerState* block_state = state ? state->blocks()[i].get() : nullptr;
      if (records && &converted != &blocks_) call.products = &converted[i];
      x_BSD = recomputes ? forward_checkpointed(*mixers_[i], blocks[i], x_BSD, call, block_state)
                         : mixers_[i]->forward(blocks[i], x_BSD, call, block_state);
      if (block_state) StudentState::settle(*block_state);
      if (options.collect_layers) output.layer_outputs_BSD.push_back(x_BSD);
    }
    if (state) state->advance(tokens_BS.size(1));
    if (post_norm_.defined()) {
      auto [final_hidden_BSD, last_hidden_BSD] = ops::add_norm(x_BSD, {}, post_norm_);
      output.final_hidden_BSD = std::move(final_hidden_BSD);
      output.last_hidden_BSD = std::move(last_hidden_BSD);
    } else {
      output.final_hidden_BSD = output.last_hidden_BSD = x_BSD;
    }
    if (options.collect_layers) output.layer_outputs_BSD.back() = output.final_hidden_BSD;
    return output;
  }

  Tensor forward_hidden(const Tensor& tokens_BS, const Tensor& is_start_BS) override {
    const at::NoGradGuard no_grad;
    return forward(tokens_BS, is_start_BS, {.compute_dtype = step_dtype_}, nullptr).last_hidden_BSD;
  }

  std::unique_ptr<nn::DecodeState> new_state(int64_t batch, int64_t /*max_tokens*/) override {
    if (batch < 1) throw ValueError("student: a state for {} sequences was asked for: at least 1 is needed", batch);
    std::vector<std::unique_ptr<MixerState>> blocks;
    for (const auto& mixer : mixers_) blocks.push_back(mixer->zero_state(batch, step_dtype_, at::TensorOptions(device()).dtype(dtype_)));
    return std::make_unique<StudentState>(std::move(blocks), batch);
  }

  Tensor forward_step(const Tensor& tokens_BS, nn::DecodeState& state) override {
    const at::NoGradGuard no_grad;
    const auto form = tokens_BS.dim() == 2 && tokens_BS.size(1) == 1 ? ops::MlstmForm::recurrent : ops::MlstmForm::chunkwise;
    return forward(tokens_BS, {}, {.compute_dtype = step_dtype_, .mlstm_form = form}, &state).last_hidden_BSD;
  }

  Tensor logits(const Tensor& hidden) override {
    const at::NoGradGuard no_grad;
    const bool is_double = hidden.scalar_type() == at::kDouble;
    const bool has_half_head = c10::elementSize(head_VD_.scalar_type()) < 4;
    if (has_half_head && head_VD_.is_cuda() && !is_double) {
      const Tensor rows = hidden.reshape({-1, hidden_size()}).to(head_VD_.scalar_type());
      std::vector<int64_t> shape = hidden.sizes().vec();
      shape.back() = vocab_size();
      return at::mm(rows, head_VD_.t(), at::kFloat).view(shape);
    }
    const at::ScalarType type = is_double ? at::kDouble : at::kFloat;
    return ops::linear_without_grad(hidden.to(type), head_VD_.to(type));
  }

  [[nodiscard]] const Tensor& head_weight() const override { return head_VD_; }
  [[nodiscard]] const Tensor& embedding_weight() const override { return embedding_VD_; }
  [[nodiscard]] int64_t vocab_size() const override { return config_.vocab_size; }
  [[nodiscard]] int64_t hidden_size() const override { return config_.embedding_dim; }
  [[nodiscard]] at::Device device() const override { return embedding_VD_.device(); }
  [[nodiscard]] const StudentConfig& config() const override { return config_; }
  [[nodiscard]] const StudentShape& shape() const override { return shape_; }
  [[nodiscard]] const NamedTensors& parameters() const override { return parameters_; }
  [[nodiscard]] std::vector<ParameterTraits> parameter_traits() const override {
    std::vector<ParameterTraits> traits;
    for (const ParameterSpec& spec : parameter_specs(config_)) traits.push_back({spec.group, spec.decays});
    return traits;
  }
  void set_compute_dtype(at::ScalarType dtype) override { step_dtype_ = effective_dtype(dtype); }

  [[nodiscard]] std::unique_ptr<Student> replica() const override {
    NamedTensors leaves;
    for (const auto& [name, tensor] : parameters_) leaves.emplace_back(name, tensor.detach());
    auto copy = std::make_unique<XlstmStudent>(config_, std::move(leaves), embedding_VD_, head_VD_);
    copy->step_dtype_ = step_dtype_;
    return copy;
  }

  void for_each_weight(const nn::TensorVisitor& visit, std::string_view prefix) const override {
    const auto one = [&](const std::string& name, const Tensor& tensor) {
      if (name.starts_with(prefix)) visit(name, tensor);
    };
    one("token_embedding.weight", embedding_VD_);
    for (const auto& [name, tensor] : parameters_) one(name, tensor);
    if (!config_.tie_weights) one("lm_head.weight", head_VD_);
  }

  Tensor forward_shown(const Tensor& tokens_BS, const Tensor& is_start_BS, const nn::TensorVisitor& visit) override {
    const at::NoGradGuard no_grad;
    visit("token_embedding", at::embedding(embedding_VD_, tokens_BS.to(device())));
    const StudentOutput output = forward(tokens_BS, is_start_BS, {.compute_dtype = step_dtype_, .collect_layers = true}, nullptr);
    for (size_t block = 0; block < output.layer_outputs_BSD.size(); ++block)
      visit(fmt::format("xlstm_block_stack.blocks.{}", block), output.layer_outputs_BSD[block]);
    visit("xlstm_block_stack.post_blocks_norm", output.last_hidden_BSD);
    return output.last_hidden_BSD;
  }

  [[nodiscard]] std::string precision() const override { return ops::precision_name(step_dtype_); }
  [[nodiscard]] std::string description() const override {
    return fmt::format("xLSTM, {} blocks (sLSTM at [{}]), {} trainable parameters", config_.num_blocks, fmt::join(config_.slstm_at, ", "),
                       format_parameters(static_cast<double>(num_trainable_parameters(config_))));
  }

  [[nodiscard]] NamedTensors stored_tensors(SlstmLayout layout, bool with_frozen) const override {
    NamedTensors out;
    const std::vector<ParameterSpec> specs = parameter_specs(config_);
    for (size_t i = 0; i < specs.size(); ++i) out.emplace_back(specs[i].name, to_stored(parameters_[i].second, specs[i].role, layout));
    if (with_frozen) out.emplace_back("token_embedding.weight", embedding_VD_);
    if (with_frozen && !config_.tie_weights) out.emplace_back("lm_head.weight", head_VD_);
    return out;
  }

 private:
  // float64 parameters compute in float64 throughout.
  [[nodiscard]] at::ScalarType effective_dtype(at::ScalarType asked) const {
    if (dtype_ == at::kDouble) return at::kDouble;
    if (asked != at::kFloat && asked != at::kBFloat16 && asked != at::kHalf)
      throw ValueError("student: compute_dtype {} is not supported: use float32, bfloat16 or float16", c10::toString(asked));
    return asked;
  }

  static void check_input(const Tensor& tokens_BS, const Tensor& is_start_BS) {
    if (tokens_BS.dim() != 2 || tokens_BS.scalar_type() != at::kLong || tokens_BS.numel() == 0)
      throw ShapeError("student: tokens are {} [{}]: int64 [batch, sequence] is needed, neither of them 0",
                       c10::toString(tokens_BS.scalar_type()), fmt::join(tokens_BS.sizes(), ", "));
    if (is_start_BS.defined() && is_start_BS.sizes() != tokens_BS.sizes())
      throw ShapeError("student: is_start is [{}], tokens are [{}]: they must be equal", fmt::join(is_start_BS.sizes(), ", "),
                       fmt::join(tokens_BS.sizes(), ", "));
  }

  [[nodiscard]] static StudentState* checked_state(nn::DecodeState* state, int64_t batch) {
    if (!state) return nullptr;
    auto* own = dynamic_cast<StudentState*>(state);
    if (!own) throw ValueError("student: the decoding state was made by another model");
    if (own->batch() != batch) throw ShapeError("student: {} rows of tokens, but the state is for {}", batch, own->batch());
    return own;
  }

  // The matrices in the types of their products: converted once, and kept until a parameter changes.
  const std::vector<MixerWeights>& converted_blocks(at::ScalarType compute_dtype) {
    if (compute_dtype == dtype_) return blocks_;
    const std::scoped_lock lock(cast_mutex_);  // threads that decode may be the first to ask, all at once
    int64_t version = 0;
    for (const auto& [name, tensor] : parameters_) version += tensor._version();
    if (cast_blocks_.empty() || cast_dtype_ != compute_dtype || cast_version_ != version) {
      cast_blocks_ = blocks_;
      for (size_t block = 0; block < mixers_.size(); ++block) {
        const auto& specs = mixers_[block]->parameters();
        for (size_t i = 0; i < specs.size(); ++i) {
          Tensor& weight = cast_blocks_[block][i];
          if (specs[i].product_type) weight = weight.detach().to(specs[i].product_type(weight, compute_dtype));
        }
      }
      cast_dtype_ = compute_dtype;
      cast_version_ = version;
    }
    return cast_blocks_;
  }

  PaperShape shape_;
  const StudentConfig& config_ = shape_.config();
  NamedTensors parameters_;
  Tensor embedding_VD_, head_VD_, post_norm_;
  std::vector<std::shared_ptr<const Mixer>> mixers_;
  std::vector<MixerWeights> blocks_, cast_blocks_;
  at::ScalarType dtype_ = at::kFloat, step_dtype_ = at::kFloat, cast_dtype_ = at::kFloat;
  int64_t cast_version_ = -1;
  std::mutex cast_mutex_;  // of cast_blocks_, cast_dtype_, cast_version_
};

void check_frozen(const char* what, const Tensor& tensor, const StudentConfig& config) {
  const std::vector<int64_t> shape{config.vocab_size, config.embedding_dim};
  if (!tensor.defined() || tensor.sizes() != at::IntArrayRef(shape))
    throw ShapeError("student: the {} is {}, the configuration asks for [{}]", what,
                     tensor.defined() ? fmt::format("[{}]", fmt::join(tensor.sizes(), ", ")) : "not given", fmt::join(shape, ", "));
}

std::unique_ptr<PaperStudent> assemble(const StudentConfig& config, NamedTensors parameters, const Tensor& embedding, const Tensor& head,
                                       at::Device device) {
  const Tensor embedding_VD = embedding.detach().to(device);
  const Tensor head_VD = config.tie_weights || head.is_same(embedding) ? embedding_VD : head.detach().to(device);
  return std::make_unique<XlstmStudent>(config, std::move(parameters), embedding_VD, head_VD);
}

void check_parameter_dtype(at::ScalarType dtype) {
  if (dtype != at::kFloat && dtype != at::kDouble)
    throw ValueError("student: parameters of type {} are not supported: float32, or float64 for tests", c10::toString(dtype));
}

}  // namespace

std::unique_ptr<PaperStudent> PaperStudent::create(const StudentConfig& config, const Tensor& embedding_VD, Tensor head_VD, uint64_t seed,
                                                   at::Device device, at::ScalarType parameter_dtype) {
  config.check();
  check_parameter_dtype(parameter_dtype);
  if (config.tie_weights && !head_VD.defined()) head_VD = embedding_VD;
  check_frozen("embedding", embedding_VD, config);
  check_frozen("head", head_VD, config);
  return assemble(config, fresh_parameters(config, seed, device, parameter_dtype), embedding_VD, head_VD, device);
}

std::unique_ptr<PaperStudent> PaperStudent::load(const io::ModelFiles& files, at::Device device, at::ScalarType parameter_dtype,
                                                 Tensor embedding_VD, Tensor head_VD) {
  check_parameter_dtype(parameter_dtype);
  StudentConfig config = StudentConfig::from_json(files.config, files.path.string() + " (configuration)");
  const bool needs_frozen = !embedding_VD.defined() || (!config.tie_weights && !head_VD.defined());
  LoadedTensors loaded = load_tensors(config, files.weights, device, parameter_dtype, needs_frozen);
  if (loaded.has_own_head && !embedding_VD.defined()) {
    spdlog::warn("{}: config.json says tie_weights = true, but 'lm_head.weight' differs from the embedding: the stored head is used",
                 files.path.string());
    config.tie_weights = false;
    if (!head_VD.defined()) head_VD = loaded.head_VD;
  }
  if (!embedding_VD.defined()) embedding_VD = loaded.embedding_VD;
  if (!head_VD.defined()) head_VD = config.tie_weights ? embedding_VD : loaded.head_VD;
  check_frozen("embedding", embedding_VD, config);
  check_frozen("head", head_VD, config);
  return assemble(config, std::move(loaded.parameters), embedding_VD, head_VD, device);
}

SlstmLayout parse_slstm_layout(std::string_view name) {
  return name.empty() ? SlstmLayout::cuda : config::parse_name<SlstmLayout>(name, "student.slstm_layout");
}

}  // namespace distil_xlstm::student
