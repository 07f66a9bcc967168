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

Tensor KvCache::new_rows(int64_t batch) const {
  std::vector<int64_t> shape = keys_LBGTK_.sizes().vec();
  shape[1] = batch;
  return at::empty(shape, keys_LBGTK_.options());
}

void KvCache::gather_rows(const Tensor& rows) {
  const at::NoGradGuard no_grad;
  const Tensor places = checked_rows("KV cache", rows, batch(), keys_LBGTK_.device());
  const Tensor keys = new_rows(places.numel()), values = new_rows(places.numel());
  // Only what is filled: a cache is made for more tokens than most texts have.
  for (int64_t layer = 0; layer < keys.size(0); ++layer) {
    for (const auto& [to, from] : {std::pair{keys, keys_LBGTK_}, std::pair{values, values_LBGTK_}})
      to[layer].narrow(2, 0, num_tokens_).copy_(from[layer].narrow(2, 0, num_tokens_).index_select(0, places));
  }
  keys_LBGTK_ = keys;
  values_LBGTK_ = values;
}

std::unique_ptr<DecodeState> KvCache::rows_at(const Tensor& rows) const {
  auto copy = std::make_unique<KvCache>(*this);  // another handle on the same memory, which gather_rows then leaves
  copy->gather_rows(rows);
  return copy;
}

void KvCache::append_rows(const DecodeState& other) {
  const at::NoGradGuard no_grad;
  const auto* cache = dynamic_cast<const KvCache*>(&other);
  const auto shape_of = [](const KvCache& one) {
    const Tensor& keys = one.keys_LBGTK_;
    return std::tuple(keys.size(0), keys.size(2), keys.size(4), keys.scalar_type(), keys.device());
  };
  if (cache == nullptr || shape_of(*cache) != shape_of(*this))
    throw ValueError("KV cache: rows of another model's state cannot join these");
  check_same_tokens("KV cache", *this, *cache);
  const int64_t B = batch(), added = cache->batch();
  const Tensor keys = new_rows(B + added), values = new_rows(B + added);
  const auto put = [&](const Tensor& to, int64_t row, const Tensor& from) {
    to.narrow(1, row, from.size(1)).narrow(3, 0, num_tokens_).copy_(from.narrow(3, 0, num_tokens_));
  };
  put(keys, 0, keys_LBGTK_);
  put(keys, B, cache->keys_LBGTK_);
  put(values, 0, values_LBGTK_);
  put(values, B, cache->values_LBGTK_);
  keys_LBGTK_ = keys;
  values_LBGTK_ = values;
}

}  // namespace distil_xlstm::nn
