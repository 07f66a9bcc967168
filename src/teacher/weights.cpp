#include "teacher/weights.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/text.h"
#include "nn/stored.h"

namespace distil_xlstm::teacher {
namespace {

constexpr int64_t kPieceElements = 1 << 22;
constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

std::string layer_name(int64_t layer, std::string_view part) {
  return fmt::format("model.layers.{}.{}", layer, part);
}

// Old checkpoints store the rotary frequencies, and some a copy of the tied head.
bool is_redundant(std::string_view name, const nn::TransformerConfig& config) {
  return name.ends_with(".rotary_emb.inv_freq") || (config.is_tied && name == kHead);
}

// A tied matrix may be stored under either name.
std::string stored_name(const std::string& name, const nn::TransformerConfig& config, const io::WeightSource& source) {
  return config.is_tied && name == kEmbedding && !source.contains(kEmbedding) && source.contains(kHead) ? kHead : name;
}

void check_tensors(const nn::TransformerConfig& config, const io::WeightSource& source) {
  std::map<std::string, std::vector<int64_t>> expected;
  std::vector<std::string> missing, unexpected;
  for (const TensorSpec& spec : tensor_specs(config)) {
    const std::string name = stored_name(spec.name, config, source);
    expected[name] = spec.shape;
    if (!source.contains(name)) missing.push_back(name);
  }
  for (const std::string& name : source.names()) {
    if (!expected.contains(name) && !is_redundant(name, config)) unexpected.push_back(name);
  }
  const bool lacks_head = !config.is_tied && !source.contains(kHead);
  nn::check_names(source.origin(), missing, unexpected,
                  lacks_head ? "; where the head is the embedding, config.json must say tie_word_embeddings = true" : "");
  for (const auto& [name, shape] : expected) {
    const io::TensorView view = source.view(name);
    if (view.shape != shape) {
      throw DataError("{}: tensor '{}' is [{}], config.json asks for [{}]", source.origin(), name, fmt::join(view.shape, ", "),
                      fmt::join(shape, ", "));
    }
  }
}

class Loader {
 public:
  Loader(std::shared_ptr<io::WeightSource> source, at::Device device, at::ScalarType dtype)
      : source_(std::move(source)), options_(at::TensorOptions(device).dtype(dtype)), dtype_(dtype) {}

  [[nodiscard]] Tensor load(const std::string& name) const {
    const io::TensorView view = source_->view(name);
    if (options_.device().is_cpu() && stored_type(view) == dtype_) {
      return at::from_blob(pointer(view, 0), view.shape, [keep = source_](void*) {}, options_);
    }
    Tensor result = at::empty(view.shape, options_);
    fill(result, view);
    return result;
  }

  // The tensors' rows one after the other; undefined for no names.
  [[nodiscard]] Tensor load_joined(const std::vector<std::string>& names) const {
    if (names.empty()) return {};
    int64_t rows = 0;
    for (const std::string& name : names) rows += source_->view(name).shape[0];
    std::vector<int64_t> shape = source_->view(names[0]).shape;
    shape[0] = rows;
    Tensor result = at::empty(shape, options_);
    int64_t row = 0;
    for (const std::string& name : names) {
      const io::TensorView view = source_->view(name);
      fill(result.narrow(0, row, view.shape[0]), view);
      row += view.shape[0];
    }
    return result;
  }

 private:
  // The type under which the stored bytes can be used as they are: plain and aligned.
  [[nodiscard]] std::optional<at::ScalarType> stored_type(const io::TensorView& view) const {
    const std::optional<at::ScalarType> type = nn::stored_type(view.dtype);
    if (!type || !source_->is_plain(view.name)) return std::nullopt;
    const bool is_aligned = reinterpret_cast<uintptr_t>(view.bytes.data()) % c10::elementSize(*type) == 0;
    return is_aligned ? type : std::nullopt;
  }

  // LibTorch has no tensors of constant memory; frozen weights are only read.
  static void* pointer(const io::TensorView& view, size_t offset) { return const_cast<std::byte*>(view.bytes.data() + offset); }

  void fill(const Tensor& target, const io::TensorView& view) const {
    const int64_t row_length = view.shape.back(), num_rows = view.num_elements() / row_length;
    const int64_t piece_rows = std::max<int64_t>(1, kPieceElements / row_length);
    const Tensor rows = target.view({num_rows, row_length});
    const std::optional<at::ScalarType> type = stored_type(view);
    Tensor buffer = type ? Tensor() : at::empty({std::min(piece_rows, num_rows), row_length}, at::kFloat);
    for (int64_t row = 0; row < num_rows; row += piece_rows) {
      const int64_t count = std::min(piece_rows, num_rows - row);
      if (type) {
        const size_t offset = static_cast<size_t>(row * row_length) * c10::elementSize(*type);
        rows.narrow(0, row, count).copy_(at::from_blob(pointer(view, offset), {count, row_length}, *type));
      } else {
        read_rows(view.name, row, count, row_length, buffer.data_ptr<float>());
        rows.narrow(0, row, count).copy_(buffer.narrow(0, 0, count));
      }
    }
  }

  void read_rows(const std::string& name, int64_t first_row, int64_t count, int64_t row_length, float* out) const {
    const int64_t grain = std::max<int64_t>(1, 65536 / row_length);
    at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
      source_->read_float(name, (first_row + begin) * row_length, (first_row + end) * row_length, out + begin * row_length);
    });
  }

  std::shared_ptr<io::WeightSource> source_;
  at::TensorOptions options_;
  at::ScalarType dtype_;
};

nn::LayerWeights load_layer(const nn::TransformerConfig& config, const Loader& loader, int64_t layer) {
  auto one = [&](std::string_view part) { return loader.load(layer_name(layer, part)); };
  auto one_if = [&](bool exists, std::string_view part) { return exists ? one(part) : Tensor(); };
  auto joined_if = [&](bool exists, std::initializer_list<std::string_view> parts) {
    std::vector<std::string> names;
    if (exists) std::transform(parts.begin(), parts.end(), std::back_inserter(names), [&](auto part) { return layer_name(layer, part); });
    return loader.load_joined(names);
  };
  nn::LayerWeights weights;
  weights.input_norm_D = one("input_layernorm.weight");
  weights.qkv_ED = joined_if(true, {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"});
  weights.qkv_bias_E = joined_if(config.has_qkv_bias, {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"});
  weights.q_norm_K = one_if(config.has_qk_norm, "self_attn.q_norm.weight");
  weights.k_norm_K = one_if(config.has_qk_norm, "self_attn.k_norm.weight");
  weights.o_DHK = one("self_attn.o_proj.weight");
  weights.o_bias_D = one_if(config.has_o_bias, "self_attn.o_proj.bias");
  weights.mlp_norm_D = one("post_attention_layernorm.weight");
  weights.gate_up_2ID = joined_if(true, {"mlp.gate_proj.weight", "mlp.up_proj.weight"});
  weights.gate_up_bias_2I = joined_if(config.has_mlp_bias, {"mlp.gate_proj.bias", "mlp.up_proj.bias"});
  weights.down_DI = one("mlp.down_proj.weight");
  weights.down_bias_D = one_if(config.has_mlp_bias, "mlp.down_proj.bias");
  return weights;
}

}  // namespace

std::vector<TensorSpec> tensor_specs(const nn::TransformerConfig& config) {
  const int64_t D = config.hidden_size, I = config.intermediate_size, K = config.head_dim;
  const int64_t query = config.num_heads * K, key = config.num_kv_heads * K;
  std::vector<TensorSpec> specs = {{kEmbedding, {config.vocab_size, D}}};
  auto linear = [&](const std::string& name, int64_t out, int64_t in, bool has_bias) {
    specs.push_back({name + ".weight", {out, in}});
    if (has_bias) specs.push_back({name + ".bias", {out}});
  };
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    specs.push_back({layer_name(layer, "input_layernorm.weight"), {D}});
    linear(layer_name(layer, "self_attn.q_proj"), query, D, config.has_qkv_bias);
    linear(layer_name(layer, "self_attn.k_proj"), key, D, config.has_qkv_bias);
    linear(layer_name(layer, "self_attn.v_proj"), key, D, config.has_qkv_bias);
    linear(layer_name(layer, "self_attn.o_proj"), D, query, config.has_o_bias);
    if (config.has_qk_norm) {
      specs.push_back({layer_name(layer, "self_attn.q_norm.weight"), {K}});
      specs.push_back({layer_name(layer, "self_attn.k_norm.weight"), {K}});
    }
    specs.push_back({layer_name(layer, "post_attention_layernorm.weight"), {D}});
    linear(layer_name(layer, "mlp.gate_proj"), I, D, config.has_mlp_bias);
    linear(layer_name(layer, "mlp.up_proj"), I, D, config.has_mlp_bias);
    linear(layer_name(layer, "mlp.down_proj"), D, I, config.has_mlp_bias);
  }
  specs.push_back({"model.norm.weight", {D}});
  if (!config.is_tied) specs.push_back({kHead, {config.vocab_size, D}});
  return specs;
}

int64_t num_parameters(const nn::TransformerConfig& config) {
  int64_t sum = 0;
  for (const TensorSpec& spec : tensor_specs(config)) {
    int64_t elements = 1;
    bool overflows = false;
    for (const int64_t size : spec.shape) overflows = overflows || __builtin_mul_overflow(elements, size, &elements);
    if (overflows || __builtin_add_overflow(sum, elements, &sum)) {
      throw ConfigError("config.json: its sizes ask for more than 2^63 parameters, with '{}' of [{}]", spec.name,
                        fmt::join(spec.shape, ", "));
    }
  }
  return sum;
}

nn::TransformerWeights load_weights(const nn::TransformerConfig& config, const std::shared_ptr<io::WeightSource>& source, at::Device device,
                                    at::ScalarType dtype) {
  check_tensors(config, *source);
  const Loader loader(source, device, dtype);
  nn::TransformerWeights weights;
  weights.embedding_VD = loader.load(stored_name(kEmbedding, config, *source));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) weights.layers.push_back(load_layer(config, loader, layer));
  weights.final_norm_D = loader.load("model.norm.weight");
  weights.head_VD = config.is_tied ? weights.embedding_VD : loader.load(kHead);
  return weights;
}

nn::TransformerWeights random_weights(const nn::TransformerConfig& config, at::Device device, at::ScalarType dtype, at::Device drawn_on,
                                      double deviation) {
  const at::NoGradGuard no_grad;
  const auto drawn = at::TensorOptions(drawn_on).dtype(at::kFloat);
  const auto normal = [&](at::IntArrayRef shape) {
    return at::empty(shape, drawn).normal_(0.0, deviation).to(at::kBFloat16).to(device, dtype);
  };
  const auto normal_if = [&](bool exists, at::IntArrayRef shape) { return exists ? normal(shape) : Tensor(); };
  const auto one = [&](int64_t size) { return at::ones({size}, at::TensorOptions(device).dtype(dtype)); };
  const auto one_if = [&](bool exists, int64_t size) { return exists ? one(size) : Tensor(); };
  const int64_t D = config.hidden_size, I = config.intermediate_size, K = config.head_dim;
  const int64_t query = config.num_heads * K, joined = query + 2 * config.num_kv_heads * K;
  nn::TransformerWeights weights;
  weights.embedding_VD = normal({config.vocab_size, D});
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    weights.layers.push_back({{.qkv_ED = normal({joined, D}),
                               .qkv_bias_E = normal_if(config.has_qkv_bias, {joined}),
                               .q_norm_K = one_if(config.has_qk_norm, K),
                               .k_norm_K = one_if(config.has_qk_norm, K)},
                              {.input_norm_D = one(D),
                               .o_DHK = normal({D, query}),
                               .o_bias_D = normal_if(config.has_o_bias, {D}),
                               .mlp_norm_D = one(D),
                               .gate_up_2ID = normal({2 * I, D}),
                               .gate_up_bias_2I = normal_if(config.has_mlp_bias, {2 * I}),
                               .down_DI = normal({D, I}),
                               .down_bias_D = normal_if(config.has_mlp_bias, {D})}});
  }
  weights.final_norm_D = one(D);
  weights.head_VD = config.is_tied ? weights.embedding_VD : normal({config.vocab_size, D});
  return weights;
}

}  // namespace distil_xlstm::teacher
