// A language model that can be computed by hand: the next token depends on the last one through a fixed table of logits, and its state
// counts tokens. For tests of evaluation and generation.
#pragma once

#include "nn/language_model.h"

namespace distil_xlstm {

struct ToyState : nn::DecodeState {
  int64_t tokens = 0;
  [[nodiscard]] int64_t size_bytes() const override { return 8; }
  [[nodiscard]] int64_t num_tokens() const override { return tokens; }
  void gather_rows(const Tensor&) override {}  // all rows have the same
  void append_rows(const DecodeState&) override {}
  [[nodiscard]] std::unique_ptr<nn::DecodeState> rows_at(const Tensor&) const override { return std::make_unique<ToyState>(*this); }
};

class ToyModel : public nn::LanguageModel {
 public:
  // logits_VV: row = last token, column = next token.
  explicit ToyModel(Tensor logits_VV) : embedding_(at::eye(logits_VV.size(0))), head_(logits_VV.t().contiguous()) {}

  Tensor forward_hidden(const Tensor& tokens_BS, const Tensor& = {}) override {
    largest_batch = std::max(largest_batch, tokens_BS.size(0));
    return embedding_.index_select(0, tokens_BS.reshape({-1})).reshape({tokens_BS.size(0), tokens_BS.size(1), -1});
  }
  std::unique_ptr<nn::DecodeState> new_state(int64_t, int64_t) override { return std::make_unique<ToyState>(); }
  Tensor forward_step(const Tensor& tokens_BS, nn::DecodeState& state) override {
    dynamic_cast<ToyState&>(state).tokens += tokens_BS.size(1);
    return forward_hidden(tokens_BS);
  }
  Tensor logits(const Tensor& hidden) override { return hidden.matmul(head_.t()); }
  [[nodiscard]] const Tensor& head_weight() const override { return head_; }
  [[nodiscard]] int64_t vocab_size() const override { return head_.size(0); }
  [[nodiscard]] int64_t hidden_size() const override { return head_.size(1); }
  [[nodiscard]] at::Device device() const override { return at::kCPU; }
  [[nodiscard]] std::string description() const override { return "toy"; }
  [[nodiscard]] std::string precision() const override { return "fp32"; }
  void for_each_weight(const nn::TensorVisitor& visit, std::string_view prefix) const override {
    for (const auto& [name, tensor] : {std::pair{"embedding.weight", embedding_}, {"lm_head.weight", head_}}) {
      if (std::string_view(name).starts_with(prefix)) visit(name, tensor);
    }
  }
  Tensor forward_shown(const Tensor& tokens_BS, const Tensor& is_start_BS, const nn::TensorVisitor& visit) override {
    const Tensor hidden = forward_hidden(tokens_BS, is_start_BS);
    visit("embedding", hidden);
    return hidden;
  }

  int64_t largest_batch = 0;

 private:
  Tensor embedding_, head_;
};

}  // namespace distil_xlstm
