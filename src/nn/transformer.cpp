#include "nn/transformer.h"

#include "base/error.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace distil_xlstm::nn {

template <typename Change>
void Transformer::for_each_matrix(Change&& change) {
  for (LayerWeights& layer : weights_.layers) {
    for (Matrix* matrix : {&layer.qkv_ED, &layer.o_DHK, &layer.gate_up_2ID, &layer.down_DI}) change(*matrix);
  }
}

Transformer::Transformer(const TransformerConfig& config, TransformerWeights weights)
    : config_(config), weights_(std::move(weights)), attention_(config_, weights_.embedding_VD.device()) {
  for_each_matrix([](Matrix& matrix) { matrix.pack(); });  // never seen again in the stored layout
}

void Transformer::check_tokens(const Tensor& tokens_BS) const {
  if (tokens_BS.dim() != 2 || tokens_BS.numel() == 0) {
    throw ShapeError("transformer: tokens of shape {}, must be [batch, sequence]", fmt::join(tokens_BS.sizes(), " x "));
  }
  if (!tokens_BS.is_cpu()) return;
  const auto [lowest, highest] = at::aminmax(tokens_BS);
  if (lowest.item<int64_t>() < 0 || highest.item<int64_t>() >= config_.vocab_size) {
    throw ValueError("transformer: token ids {} to {}, the vocabulary has {}: were they made with another tokenizer?",
                     lowest.item<int64_t>(), highest.item<int64_t>(), config_.vocab_size);
  }
}

void Transformer::check_cache(const KvCache& cache, const Tensor& tokens_BS, const Tensor& is_start_BS) const {
  if (is_start_BS.defined()) throw ValueError("transformer: document starts cannot be given together with a KV cache");
  if (tokens_BS.size(0) != cache.batch()) {
    throw ShapeError("transformer: {} sequences for a KV cache of {}", tokens_BS.size(0), cache.batch());
  }
  if (cache.num_tokens() + tokens_BS.size(1) > cache.max_tokens()) {
    throw ValueError("transformer: {} more tokens after {} do not fit the KV cache of {}: make its state with a larger max_tokens",
                     tokens_BS.size(1), cache.num_tokens(), cache.max_tokens());
  }
}

void Transformer::use_fp8_products() {
  const at::NoGradGuard no_grad;
  for_each_matrix([](Matrix& matrix) { matrix.use_fp8(); });
  product_type_ = ProductType::fp8;
}

Tensor Transformer::forward(const Tensor& tokens_BS, const Tensor& is_start_BS, const LayerVisitors& visitors, KvCache* cache) {
  const at::NoGradGuard no_grad;
  check_tokens(tokens_BS);
  if (cache) check_cache(*cache, tokens_BS, is_start_BS);
  const at::Device device = weights_.embedding_VD.device();
  Sight sight = attention_.sight(tokens_BS.size(0), tokens_BS.size(1), options(), is_start_BS, cache);
  sight.on_heads = visitors.attention_heads;
  LayerCall call{.rms_norm_eps = config_.rms_norm_eps, .product_type = product_type_, .keeps_input = false};

  Tensor x_BSD = at::embedding(weights_.embedding_VD, tokens_BS.to(device));
  for (int64_t index = 0; index < config_.num_layers; ++index) {
    const LayerWeights& layer = weights_.layers[static_cast<size_t>(index)];
    AttentionMixer mixer(attention_, layer, sight, index);
    if (visitors.attention_output) call.on_mixer_output = [&](const Tensor& output_BSD) { visitors.attention_output(index, output_BSD); };
    x_BSD = decoder_layer(layer, mixer, x_BSD, call);
    call.keeps_input = visitors.block_output && visitors.block_output(index, x_BSD);
  }
  if (cache) cache->advance(tokens_BS.size(1));
  return final_norm(x_BSD);
}

Tensor Transformer::final_norm(const Tensor& hidden) const {
  const at::NoGradGuard no_grad;
  return ops::rms_norm(hidden, weights_.final_norm_D, config_.rms_norm_eps);
}

Tensor Transformer::logits(const Tensor& hidden) const {
  const at::NoGradGuard no_grad;
  return ops::linear_without_grad(hidden.to(weights_.head_VD.options()), weights_.head_VD).to(at::kFloat);
}

}  // namespace distil_xlstm::nn
