// Keys and values of the tokens seen, preallocated. Letters: L layers, B batch, G key/value heads, T positions, S new ones, K head_dim.
#pragma once

#include <utility>

#include "nn/decode_state.h"
#include "nn/transformer_config.h"

namespace distil_xlstm::nn {

class KvCache : public DecodeState {
 public:
  KvCache(const TransformerConfig& config, int64_t batch, int64_t max_tokens, const at::TensorOptions& options);
  [[nodiscard]] int64_t size_bytes() const override;
  [[nodiscard]] int64_t num_tokens() const override { return num_tokens_; }
  [[nodiscard]] int64_t batch() const { return keys_LBGTK_.size(1); }
  [[nodiscard]] int64_t max_tokens() const { return keys_LBGTK_.size(3); }

  void gather_rows(const Tensor& rows) override;
  // The room for tokens stays this one's.
  void append_rows(const DecodeState& other) override;
  [[nodiscard]] std::unique_ptr<DecodeState> rows_at(const Tensor& rows) const override;

  // Writes one layer's new keys and values behind the tokens seen; returns all of that layer's so far, as views.
  std::pair<Tensor, Tensor> append(int64_t layer, const Tensor& k_BGSK, const Tensor& v_BGSK);
  void advance(int64_t count) { num_tokens_ += count; }

 private:
  [[nodiscard]] Tensor new_rows(int64_t batch) const;

  Tensor keys_LBGTK_, values_LBGTK_;
  int64_t num_tokens_ = 0;
};

}  // namespace distil_xlstm::nn
