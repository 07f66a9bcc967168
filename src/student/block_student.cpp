#include "student/block_student.h"

#include <ATen/Parallel.h>

#include <optional>

#include "base/error.h"
#include "ops/device.h"
#include "ops/linear.h"

namespace distil_xlstm::student {
namespace {

void check_input(const Tensor& tokens_BS, const Tensor& is_start_BS) {
  if (tokens_BS.dim() != 2 || tokens_BS.scalar_type() != at::kLong || tokens_BS.numel() == 0)
    throw ShapeError("student: tokens are {} [{}]: int64 [batch, sequence] is needed, neither of them 0",
                     c10::toString(tokens_BS.scalar_type()), fmt::join(tokens_BS.sizes(), ", "));
  if (is_start_BS.defined() && is_start_BS.sizes() != tokens_BS.sizes())
    throw ShapeError("student: is_start is [{}], tokens are [{}]: they must be equal", fmt::join(is_start_BS.sizes(), ", "),
                     fmt::join(tokens_BS.sizes(), ", "));
}

StudentState* checked_state(nn::DecodeState* state, int64_t batch) {
  if (!state) return nullptr;
  auto* own = dynamic_cast<StudentState*>(state);
  if (!own) throw ValueError("student: the decoding state was made by another model");
  if (own->batch() != batch) throw ShapeError("student: {} rows of tokens, but the state is for {}", batch, own->batch());
  return own;
}

}  // namespace

NamedTensors draw_parameters(const std::vector<ParameterSpec>& specs, uint64_t seed, at::Device device, at::ScalarType dtype) {
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

void check_frozen(const char* what, const Tensor& tensor, int64_t vocab_size, int64_t hidden_size) {
  const std::vector<int64_t> shape{vocab_size, hidden_size};
  if (!tensor.defined() || tensor.sizes() != at::IntArrayRef(shape))
    throw ShapeError("student: the {} is {}, the configuration asks for [{}]", what,
                     tensor.defined() ? fmt::format("[{}]", fmt::join(tensor.sizes(), ", ")) : "not given", fmt::join(shape, ", "));
}

void check_parameter_dtype(at::ScalarType dtype) {
  if (dtype != at::kFloat && dtype != at::kDouble)
    throw ValueError("student: parameters of type {} are not supported: float32, or float64 for tests", c10::toString(dtype));
}

BlockStudent::BlockStudent(BlockParts parts) : parts_(std::move(parts)) {
  for (auto& [name, tensor] : parts_.parameters) tensor.requires_grad_();
  auto next = parts_.parameters.begin();
  for (const auto& mixer : parts_.mixers) {
    MixerWeights weights;
    for (size_t i = 0; i < mixer->parameters().size(); ++i) weights.push_back((next++)->second);
    blocks_.push_back(std::move(weights));
  }
  if (next != parts_.parameters.end()) last_norm_D_ = next->second;
  dtype_ = parts_.parameters.front().second.scalar_type();
  step_dtype_ = dtype_;
}

StudentOutput BlockStudent::forward(const Tensor& tokens_BS, const Tensor& is_start_BS, const StudentForwardOptions& options,
                                    nn::DecodeState* decode_state) {
  check_input(tokens_BS, is_start_BS);
  StudentState* state = checked_state(decode_state, tokens_BS.size(0));
  MixerCall call = mixer_call(is_start_BS, options);
  const bool records = at::GradMode::is_enabled();
  const std::vector<MixerWeights>& converted = converted_blocks(call.compute_dtype);
  const std::vector<MixerWeights>& blocks = records ? blocks_ : converted;
  const bool recomputes = records && options.activation_checkpointing;
  StudentOutput output;
  Tensor x_BSD = at::embedding(parts_.embedding_VD, tokens_BS.to(device())).to(dtype_);
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (options.layer_inputs_BSD != nullptr && i > 0) x_BSD = options.layer_inputs_BSD->at(i - 1).to(dtype_);
    MixerState* block_state = state ? state->blocks()[i].get() : nullptr;
    if (records && &converted != &blocks_) call.products = &converted[i];
    x_BSD = recomputes ? forward_checkpointed(*parts_.mixers[i], blocks[i], x_BSD, call, block_state)
                       : parts_.mixers[i]->forward(blocks[i], x_BSD, call, block_state);
    if (block_state) StudentState::settle(*block_state);
    if (options.collect_layers) output.layer_outputs_BSD.push_back(x_BSD);
  }
  if (state) state->advance(tokens_BS.size(1));
  std::tie(output.final_hidden_BSD, output.last_hidden_BSD) = last_states(x_BSD, last_norm_D_);
  if (options.collect_layers) output.layer_outputs_BSD.back() = output.final_hidden_BSD;
  return output;
}

MixerCall BlockStudent::mixer_call(const Tensor& is_start_BS, const StudentForwardOptions& options) const {
  return {.is_start_BS = is_start_BS.defined() ? is_start_BS.to(device(), at::kByte) : is_start_BS,
          .compute_dtype = effective_dtype(options.compute_dtype),
          .form = options.mlstm_form};
}

std::pair<const MixerWeights&, MixerCall> BlockStudent::layer_call(int64_t layer, const Tensor& is_start_BS,
                                                                   const StudentForwardOptions& options) {
  const auto i = static_cast<size_t>(layer);
  MixerCall call = mixer_call(is_start_BS, options);
  const bool records = at::GradMode::is_enabled();
  const std::vector<MixerWeights>& converted = converted_blocks(call.compute_dtype);
  if (records && &converted != &blocks_) call.products = &converted.at(i);
  return {records ? blocks_.at(i) : converted.at(i), call};
}

Tensor BlockStudent::mixer_output(int64_t layer, const Tensor& x_BSD, const Tensor& is_start_BS, const StudentForwardOptions& options) {
  const auto [weights, call] = layer_call(layer, is_start_BS, options);
  return parts_.mixers.at(static_cast<size_t>(layer))->mixer_output(weights, x_BSD.to(dtype_), call);
}

Tensor BlockStudent::mixing_error_sum(int64_t layer, const Tensor& x_BSD, const Tensor& is_start_BS, const AttentionMatrix& attention,
                                      const StudentForwardOptions& options) {
  const Mixer& mixer = *parts_.mixers.at(static_cast<size_t>(layer));
  if (!mixer.has_mixing_matrix()) return {};
  const auto [weights, call] = layer_call(layer, is_start_BS, options);
  return mixer.mixing_error_sum(weights, x_BSD.to(dtype_), call, attention);
}

Tensor BlockStudent::forward_hidden(const Tensor& tokens_BS, const Tensor& is_start_BS) {
  const at::NoGradGuard no_grad;
  return forward(tokens_BS, is_start_BS, {.compute_dtype = step_dtype_}, nullptr).last_hidden_BSD;
}

std::unique_ptr<nn::DecodeState> BlockStudent::new_state(int64_t batch, int64_t max_tokens) {
  if (batch < 1) throw ValueError("student: a state for {} sequences was asked for: at least 1 is needed", batch);
  std::vector<std::unique_ptr<MixerState>> blocks;
  for (const auto& mixer : parts_.mixers) {
    blocks.push_back(mixer->zero_state(batch, step_dtype_, at::TensorOptions(device()).dtype(dtype_)));
    blocks.back()->reserve(max_tokens);
  }
  return std::make_unique<StudentState>(std::move(blocks), batch);
}

Tensor BlockStudent::forward_step(const Tensor& tokens_BS, nn::DecodeState& state) {
  const at::NoGradGuard no_grad;
  const auto form = tokens_BS.dim() == 2 && tokens_BS.size(1) == 1 ? ops::MlstmForm::recurrent : ops::MlstmForm::chunkwise;
  return forward(tokens_BS, {}, {.compute_dtype = step_dtype_, .mlstm_form = form}, &state).last_hidden_BSD;
}

Tensor BlockStudent::logits(const Tensor& hidden) {
  const at::NoGradGuard no_grad;
  const Tensor& head_VD = parts_.head_VD;
  const bool is_double = hidden.scalar_type() == at::kDouble;
  const bool has_half_head = c10::elementSize(head_VD.scalar_type()) < 4;
  if (has_half_head && head_VD.is_cuda() && !is_double) {
    const Tensor rows = hidden.reshape({-1, hidden_size()}).to(head_VD.scalar_type());
    std::vector<int64_t> shape = hidden.sizes().vec();
    shape.back() = vocab_size();
    return at::mm(rows, head_VD.t(), at::kFloat).view(shape);
  }
  const at::ScalarType type = is_double ? at::kDouble : at::kFloat;
  return ops::linear_without_grad(hidden.to(type), head_VD.to(type));
}

std::string BlockStudent::precision() const {
  return ops::precision_name(step_dtype_);
}

std::vector<ParameterTraits> BlockStudent::parameter_traits() const {
  std::vector<ParameterTraits> traits;
  for (const ParameterSpec& spec : parts_.specs) traits.push_back({spec.group, spec.decays});
  return traits;
}

std::unique_ptr<Student> BlockStudent::replica() const {
  BlockParts parts = parts_;
  for (auto& [name, tensor] : parts.parameters) tensor = tensor.detach();
  auto copy = with_parameters(std::move(parts));
  copy->step_dtype_ = step_dtype_;
  return copy;
}

void BlockStudent::add_frozen(NamedTensors& tensors) const {
  tensors.emplace_back(parts_.embedding + ".weight", parts_.embedding_VD);
  if (!parts_.is_tied) tensors.emplace_back("lm_head.weight", parts_.head_VD);
}

void BlockStudent::for_each_weight(const nn::TensorVisitor& visit, std::string_view prefix) const {
  const auto one = [&](const std::string& name, const Tensor& tensor) {
    if (name.starts_with(prefix)) visit(name, tensor);
  };
  one(parts_.embedding + ".weight", parts_.embedding_VD);
  for (const auto& [name, tensor] : parts_.parameters) one(name, tensor);
  if (!parts_.is_tied) one("lm_head.weight", parts_.head_VD);
}

Tensor BlockStudent::forward_shown(const Tensor& tokens_BS, const Tensor& is_start_BS, const nn::TensorVisitor& visit) {
  const at::NoGradGuard no_grad;
  visit(parts_.embedding, at::embedding(parts_.embedding_VD, tokens_BS.to(device())));
  const StudentOutput output = forward(tokens_BS, is_start_BS, {.compute_dtype = step_dtype_, .collect_layers = true}, nullptr);
  for (size_t block = 0; block < output.layer_outputs_BSD.size(); ++block)
    visit(fmt::format("{}{}", parts_.block_prefix, block), output.layer_outputs_BSD[block]);
  visit(parts_.last_norm, output.last_hidden_BSD);
  return output.last_hidden_BSD;
}

// float64 parameters compute in float64 throughout.
at::ScalarType BlockStudent::effective_dtype(at::ScalarType asked) const {
  if (dtype_ == at::kDouble) return at::kDouble;
  if (asked != at::kFloat && asked != at::kBFloat16 && asked != at::kHalf)
    throw ValueError("student: compute_dtype {} is not supported: use float32, bfloat16 or float16", c10::toString(asked));
  return asked;
}

// The matrices in the types of their products: converted once, and kept until a parameter changes.
const std::vector<MixerWeights>& BlockStudent::converted_blocks(at::ScalarType compute_dtype) {
  if (compute_dtype == dtype_) return blocks_;
  const std::scoped_lock lock(cast_mutex_);  // threads that decode may be the first to ask, all at once
  int64_t version = 0;
  for (const auto& [name, tensor] : parts_.parameters) version += tensor._version();
  if (cast_blocks_.empty() || cast_dtype_ != compute_dtype || cast_version_ != version) {
    const at::NoGradGuard no_grad;
    std::vector<MixerWeights> cast = blocks_;  // takes the place of what is there at the end: an error leaves that as it was
    std::vector<Tensor> to, from;              // one launch for many, where a device can
    for (size_t block = 0; block < parts_.mixers.size(); ++block) {
      const auto& specs = parts_.mixers[block]->parameters();
      for (size_t i = 0; i < specs.size(); ++i) {
        Tensor& weight = cast[block][i];
        if (!specs[i].product_type) continue;
        const at::ScalarType type = specs[i].product_type(weight, compute_dtype);
        const Tensor stored = weight.detach();
        weight = type == stored.scalar_type() ? stored : to.emplace_back(at::empty_like(stored, type));
        if (type != stored.scalar_type()) from.push_back(stored);
      }
    }
    if (!to.empty()) at::_foreach_copy_(to, from);
    cast_blocks_ = std::move(cast);
    cast_dtype_ = compute_dtype;
    cast_version_ = version;
  }
  return cast_blocks_;
}

}  // namespace distil_xlstm::student
