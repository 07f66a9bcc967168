#include "student/paper/stored.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "nn/stored.h"

namespace distil_xlstm::student {
namespace {

constexpr std::string_view kStackPrefix = "xlstm_block_stack.";
constexpr std::string_view kAuthorsPrefix = "xlstm.backbone.";
constexpr std::array<std::string_view, 3> kEmbeddingNames{"token_embedding.weight", "xlstm.embedding.weight",
                                                          "xlstm.token_embedding.weight"};
constexpr std::string_view kHeadName = "lm_head.weight";

std::vector<int64_t> stored_shape(const ParameterSpec& spec, SlstmLayout layout) {
  const auto& s = spec.shape;
  if (spec.role == ParameterRole::slstm_bias) return {spec.num_elements()};
  if (spec.role != ParameterRole::slstm_recurrent) return s;
  return layout == SlstmLayout::cuda ? std::vector<int64_t>{s[0], s[1], 4 * s[3]} : std::vector<int64_t>{s[0], 4 * s[3], s[1]};
}

// Translates our names to those of the file at hand.
class StoredNames {
 public:
  explicit StoredNames(const io::WeightSource& source) {
    for (const std::string& name : source.names()) {
      stored_.insert(name);
      if (name.starts_with(kAuthorsPrefix)) has_authors_prefix_ = true;
    }
    for (const std::string_view name : kEmbeddingNames) {
      if (embedding_.empty() && source.contains(name)) embedding_ = name;
    }
    if (source.contains(kHeadName)) head_ = kHeadName;
  }

  [[nodiscard]] std::string parameter(const std::string& name) const {
    return has_authors_prefix_ ? std::string(kAuthorsPrefix) + name.substr(kStackPrefix.size()) : name;
  }
  [[nodiscard]] const std::string& embedding() const { return embedding_; }
  [[nodiscard]] const std::string& head() const { return head_; }

  // Throws DataError unless the file has exactly what the configuration asks for.
  void check(const std::vector<ParameterSpec>& specs, bool needs_frozen, bool is_tied, const std::string& origin) const {
    std::vector<std::string> missing, unexpected;
    std::set<std::string> known{std::string(kHeadName)};
    known.insert(kEmbeddingNames.begin(), kEmbeddingNames.end());
    for (const auto& spec : specs) {
      const std::string name = parameter(spec.name);
      known.insert(name);
      if (!stored_.contains(name)) missing.push_back(name);
    }
    if (needs_frozen) {
      const bool has_either = !embedding_.empty() || !head_.empty();
      if (is_tied ? !has_either : embedding_.empty()) missing.emplace_back(kEmbeddingNames[0]);
      if (!is_tied && head_.empty()) missing.emplace_back(kHeadName);
    }
    std::copy_if(stored_.begin(), stored_.end(), std::back_inserter(unexpected), [&](const auto& name) { return !known.contains(name); });
    nn::check_names(origin, missing, unexpected);
  }

 private:
  std::set<std::string> stored_;
  bool has_authors_prefix_ = false;
  std::string embedding_, head_;
};

void check_stored_shape(const io::TensorView& view, const std::vector<std::vector<int64_t>>& allowed, const std::string& origin) {
  if (std::find(allowed.begin(), allowed.end(), view.shape) != allowed.end()) return;
  std::vector<std::string> texts;
  for (const auto& shape : allowed) {
    const std::string text = fmt::format("[{}]", fmt::join(shape, ", "));
    if (std::find(texts.begin(), texts.end(), text) == texts.end()) texts.push_back(text);
  }
  throw DataError("{}: tensor '{}' is [{}], config.json asks for {}", origin, view.name, fmt::join(view.shape, ", "), join(texts, " or "));
}

Tensor load_frozen(const std::shared_ptr<io::WeightSource>& source, const std::string& name, const StudentConfig& config,
                   at::Device device) {
  check_stored_shape(source->view(name), {{config.vocab_size, config.embedding_dim}}, source->origin());
  const Tensor stored = nn::read_stored(source, name);
  // Half-precision products are slow on most CPUs, and the head is the largest of all.
  const bool widens = device.is_cpu() && c10::elementSize(stored.scalar_type()) < 4;
  return stored.to(device, widens ? at::kFloat : stored.scalar_type());
}

}  // namespace

Tensor to_stored(const Tensor& parameter, ParameterRole role, SlstmLayout layout) {
  const Tensor value = parameter.detach();
  if (role == ParameterRole::slstm_recurrent) {  // [H, K in, 4, K out]
    const int64_t H = value.size(0), K = value.size(1);
    return layout == SlstmLayout::cuda ? value.reshape({H, K, 4 * K}).clone()
                                       : value.permute({0, 2, 3, 1}).contiguous().view({H, 4 * K, K});
  }
  if (role == ParameterRole::slstm_bias)  // [H, 4, K]
    return layout == SlstmLayout::cuda ? value.reshape({-1}).clone() : value.transpose(0, 1).contiguous().view({-1});
  return value.clone(at::MemoryFormat::Contiguous);
}

Tensor from_stored(const Tensor& stored, const std::vector<int64_t>& shape, ParameterRole role, SlstmLayout layout) {
  if (layout == SlstmLayout::vanilla && role == ParameterRole::slstm_recurrent)
    return stored.view({shape[0], 4, shape[3], shape[1]}).permute({0, 3, 1, 2}).contiguous();
  if (layout == SlstmLayout::vanilla && role == ParameterRole::slstm_bias)
    return stored.view({4, shape[0], shape[2]}).transpose(0, 1).contiguous();
  return stored.reshape(shape);
}

LoadedTensors load_tensors(const StudentConfig& config, const std::shared_ptr<io::WeightSource>& source, at::Device device,
                           at::ScalarType parameter_dtype, bool needs_frozen) {
  const std::vector<ParameterSpec> specs = parameter_specs(config);
  const StoredNames names(*source);
  names.check(specs, needs_frozen, config.tie_weights, source->origin());

  LoadedTensors loaded;
  SlstmLayout layout = SlstmLayout::cuda;  // of the block at hand: its R, which comes before its bias, tells
  for (const auto& spec : specs) {
    const io::TensorView view = source->view(names.parameter(spec.name));
    check_stored_shape(view, {stored_shape(spec, SlstmLayout::cuda), stored_shape(spec, SlstmLayout::vanilla)}, source->origin());
    if (spec.role == ParameterRole::slstm_recurrent)
      layout = view.shape == stored_shape(spec, SlstmLayout::cuda) ? SlstmLayout::cuda : SlstmLayout::vanilla;
    const Tensor stored = from_stored(nn::read_stored(source, view.name), spec.shape, spec.role, layout);
    loaded.parameters.emplace_back(spec.name, stored.to(at::TensorOptions(device).dtype(parameter_dtype), false, /*copy=*/true));
  }
  if (needs_frozen) {
    loaded.embedding_VD = load_frozen(source, names.embedding().empty() ? names.head() : names.embedding(), config, device);
    const bool stores_both = !names.embedding().empty() && !names.head().empty();
    loaded.head_VD = config.tie_weights && !stores_both ? loaded.embedding_VD : load_frozen(source, names.head(), config, device);
    if (config.tie_weights && stores_both) {
      loaded.has_own_head = !at::equal(loaded.embedding_VD.to(at::kFloat), loaded.head_VD.to(at::kFloat));
      if (!loaded.has_own_head) loaded.head_VD = loaded.embedding_VD;
    }
  }
  return loaded;
}

}  // namespace distil_xlstm::student
