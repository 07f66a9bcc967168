#include "nn/kv_cache.h"

#include "base/error.h"

namespace distil_xlstm::nn {

KvCache::KvCache(const TransformerConfig& config, int64_t batch, int64_t max_tokens, const at::TensorOptions& options) {
  if (batch < 1 || max_tokens < 1) throw ValueError("KV cache: batch = {}, max_tokens = {}: both must be positive", batch, max_tokens);
  const std::vector<int64_t> shape = {config.num_layers, batch, config.num_kv_heads, max_tokens, config.head_dim};
  keys_LBGTK_ = at::empty(shape, options);
  values_LBGTK_ = at::empty(shape, options);
}

int64_t KvCache::size_bytes() const {
  return static_cast<int64_t>(keys_LBGTK_.nbytes() + values_LBGTK_.nbytes());
}

std::pair<Tensor, Tensor> KvCache::append(int64_t layer, const Tensor& k_BGSK, const Tensor& v_BGSK) {
  const int64_t S = k_BGSK.size(2);
  const Tensor keys = keys_LBGTK_.select(0, layer), values = values_LBGTK_.select(0, layer);
  keys.narrow(2, num_tokens_, S).copy_(k_BGSK);
  values.narrow(2, num_tokens_, S).copy_(v_BGSK);
  return {keys.narrow(2, 0, num_tokens_ + S), values.narrow(2, 0, num_tokens_ + S)};
}

}  // namespace distil_xlstm::nn
