#include <array>
#include <charconv>
#include <utility>

#include "base/error.h"
#include "io/gguf_model.h"

namespace distil_xlstm::io {
namespace {

using NamePair = std::pair<std::string_view, std::string_view>;
constexpr std::array<NamePair, 3> kModelNames = {
    {{"token_embd.weight", "model.embed_tokens.weight"}, {"output_norm.weight", "model.norm.weight"}, {"output.weight", "lm_head.weight"}}};
constexpr std::array<NamePair, 9> kLayerNames = {{{"attn_norm", "input_layernorm"},
                                                  {"ffn_norm", "post_attention_layernorm"},
                                                  {"attn_q", "self_attn.q_proj"},
                                                  {"attn_k", "self_attn.k_proj"},
                                                  {"attn_v", "self_attn.v_proj"},
                                                  {"attn_output", "self_attn.o_proj"},
                                                  {"ffn_gate", "mlp.gate_proj"},
                                                  {"ffn_up", "mlp.up_proj"},
                                                  {"ffn_down", "mlp.down_proj"}}};

bool ends_with_one_of(std::string_view name, std::string_view a, std::string_view b) {
  return name.ends_with(a) || name.ends_with(b);
}

class GgufWeights final : public WeightSource {
 public:
  GgufWeights(std::shared_ptr<const GgufFile> file, const GgufHeads& heads) : file_(std::move(file)), origin_(file_->path().string()) {
    for (const TensorView& stored : file_->tensors()) {
      std::string name = hugging_face_name(stored.name, origin_);
      if (name.empty()) continue;
      Tensor tensor{stored, num_permuted_heads(name, heads)};
      tensor.view.name = name;
      check_heads(tensor);
      names_.push_back(name);
      tensors_.emplace(std::move(name), std::move(tensor));
    }
  }

  [[nodiscard]] std::vector<std::string> names() const override { return names_; }
  [[nodiscard]] bool contains(std::string_view name) const override { return tensors_.find(name) != tensors_.end(); }
  [[nodiscard]] TensorView view(std::string_view name) const override { return at(name).view; }
  [[nodiscard]] bool is_plain(std::string_view name) const override {
    const auto it = tensors_.find(name);
    return it != tensors_.end() && it->second.num_heads == 0 && !is_quantized(it->second.view.dtype);
  }
  [[nodiscard]] std::string origin() const override { return origin_; }

  void read_float(std::string_view name, int64_t begin, int64_t end, float* out) const override {
    const Tensor& tensor = at(name);
    if (tensor.num_heads == 0) return read_rows(tensor.view, begin, end, out, origin_);
    // Row (head, half j, i) of Hugging Face is row (head, i, j) of the file.
    const int64_t row = tensor.view.shape.size() < 2 ? 1 : tensor.view.shape.back();
    const int64_t head_dim = tensor.view.shape.front() / tensor.num_heads;
    if (row == 0 || begin % row != 0) return read_rows(tensor.view, begin, end, out, origin_);
    for (int64_t at = begin; at < end; at += row, out += row) {
      const int64_t within = at / row % head_dim;
      const int64_t stored = at / row - within + within % (head_dim / 2) * 2 + within / (head_dim / 2);
      read_rows(tensor.view, stored * row, stored * row + std::min(row, end - at), out, origin_);
    }
  }

 private:
  struct Tensor {
    TensorView view;
    int64_t num_heads = 0;  // 0: rows are in Hugging Face's order
  };

  static int64_t num_permuted_heads(std::string_view name, const GgufHeads& heads) {
    if (!heads.heads_permuted) return 0;
    if (ends_with_one_of(name, "self_attn.q_proj.weight", "self_attn.q_proj.bias")) return heads.num_heads;
    if (ends_with_one_of(name, "self_attn.k_proj.weight", "self_attn.k_proj.bias")) return heads.num_kv_heads;
    return 0;
  }

  void check_heads(const Tensor& tensor) const {
    if (tensor.num_heads == 0) return;
    const bool is_quantized_vector = tensor.view.shape.size() < 2 && is_quantized(tensor.view.dtype);
    if (tensor.view.shape.front() % (tensor.num_heads * 2) != 0 || is_quantized_vector) {
      throw DataError("{}: tensor '{}' has {} rows of type {}, which do not divide into {} heads of an even width", origin_,
                      tensor.view.name, tensor.view.shape.front(), traits(tensor.view.dtype).name, tensor.num_heads);
    }
  }

  [[nodiscard]] const Tensor& at(std::string_view name) const {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) throw DataError("{}: tensor '{}' is missing", origin_, name);
    return it->second;
  }

  std::shared_ptr<const GgufFile> file_;
  std::string origin_;
  std::vector<std::string> names_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

// "blk.3.attn_q.weight" -> ("3", "attn_q", ".weight"); all empty when it has another form.
struct LayerName {
  std::string_view layer, module, suffix;
};
LayerName take_apart(std::string_view name) {
  if (!name.starts_with("blk.")) return {};
  const size_t first = 4, second = name.find('.', first), third = name.find('.', second == std::string_view::npos ? second : second + 1);
  if (third == std::string_view::npos) return {};
  const std::string_view layer = name.substr(first, second - first), suffix = name.substr(third);
  const bool is_number = !layer.empty() && layer.size() < 6 && layer.find_first_not_of("0123456789") == std::string_view::npos;
  if (!is_number || (suffix != ".weight" && suffix != ".bias")) return {};
  return {layer, name.substr(second + 1, third - second - 1), suffix};
}

}  // namespace

std::string hugging_face_name(std::string_view gguf_name, std::string_view where) {
  if (gguf_name == "rope_freqs.weight") return "";
  for (const auto& [theirs, ours] : kModelNames) {
    if (theirs == gguf_name) return std::string(ours);
  }
  const LayerName parts = take_apart(gguf_name);
  for (const auto& [theirs, ours] : kLayerNames) {
    if (theirs == parts.module) return fmt::format("model.layers.{}.{}{}", parts.layer, ours, parts.suffix);
  }
  throw DataError("{}: tensor '{}' is not known: only plain llama and qwen2 models are supported", where, gguf_name);
}

std::shared_ptr<WeightSource> gguf_weights(std::shared_ptr<const GgufFile> file, const GgufHeads& heads) {
  return std::make_shared<GgufWeights>(std::move(file), heads);
}

}  // namespace distil_xlstm::io
