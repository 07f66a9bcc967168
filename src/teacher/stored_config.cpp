// A configuration beside the tensors that are there.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <set>

#include "base/error.h"
#include "teacher/weights.h"

namespace distil_xlstm::teacher {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr int64_t kPieceElements = 1 << 20;

// Equal shapes are a condition.
bool have_equal_values(const io::WeightSource& source, const std::string& a, const std::string& b) {
  const io::TensorView first = source.view(a), second = source.view(b);
  if (first.dtype == second.dtype && first.bytes.size() == second.bytes.size() &&
      std::memcmp(first.bytes.data(), second.bytes.data(), first.bytes.size()) == 0)
    return true;
  const int64_t size = first.num_elements();
  std::vector<float> left(static_cast<size_t>(std::min(size, kPieceElements))), right(left.size());
  for (int64_t begin = 0; begin < size; begin += kPieceElements) {
    const int64_t end = std::min(size, begin + kPieceElements);
    source.read_float(a, begin, end, left.data());
    source.read_float(b, begin, end, right.data());
    if (!std::equal(left.begin(), left.begin() + (end - begin), right.begin())) return false;
  }
  return true;
}

// Once for each place: commands ask more than once.
void warn_once(const std::string& message) {
  static std::mutex mutex;
  static std::set<std::string> said;
  const std::scoped_lock lock(mutex);
  if (said.insert(message).second) spdlog::warn("{}", message);
}

bool has_own_head(const nn::TransformerConfig& config, const io::WeightSource& source) {
  if (!source.contains(kHead) || !source.contains(kEmbedding)) return false;
  const std::vector<int64_t> shape = {config.vocab_size, config.hidden_size};
  if (source.view(kEmbedding).shape != shape) return false;  // said by who loads it
  if (const auto found = source.view(kHead).shape; found != shape) {
    throw DataError(
        "{}: tensor '{}' is [{}], but tie_word_embeddings = true makes the embedding, [{}], the head: remove the tensor, or give one of "
        "that "
        "shape",
        source.origin(), kHead, fmt::join(found, ", "), fmt::join(shape, ", "));
  }
  return !have_equal_values(source, kEmbedding, kHead);
}

// Llama's attention_bias stands for q, k, v and o; models of other families that were stored as Llama have none of o.
bool lacks_o_biases(const nn::TransformerConfig& config, const io::WeightSource& source) {
  const auto has_bias = [&](int64_t layer, const char* name) {
    return source.contains(fmt::format("model.layers.{}.self_attn.{}.bias", layer, name));
  };
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (!has_bias(layer, "q_proj") || has_bias(layer, "o_proj")) return false;
  }
  return true;
}

}  // namespace

nn::TransformerConfig as_stored(nn::TransformerConfig config, const io::WeightSource& source) {
  if (config.is_tied && has_own_head(config, source)) {
    warn_once(fmt::format("{}: config.json says tie_word_embeddings = true, but '{}' differs from '{}': the stored head is used",
                          source.origin(), kHead, kEmbedding));
    config.is_tied = false;
  }
  if (config.has_o_bias && lacks_o_biases(config, source)) config.has_o_bias = false;
  return config;
}

}  // namespace distil_xlstm::teacher
