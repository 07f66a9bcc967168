// A language model that follows a rule of the test: the next token from all tokens of the row so far.
#pragma once

#include <functional>

#include "support/toy_model.h"

namespace distil_xlstm {

struct HistoryState : ToyState {
  std::vector<std::vector<int64_t>> rows;
  [[nodiscard]] int64_t size_bytes() const override { return 16 * static_cast<int64_t>(rows.size()); }
};

class RuleModel : public ToyModel {
 public:
  using Rule = std::function<int64_t(const std::vector<int64_t>& tokens)>;
  RuleModel(int64_t vocab_size, Rule rule) : ToyModel(at::eye(vocab_size) * 10), rule_(std::move(rule)) {}

  std::unique_ptr<nn::DecodeState> new_state(int64_t batch, int64_t max_tokens) override {
    largest_max_tokens = std::max(largest_max_tokens, max_tokens);
    auto state = std::make_unique<HistoryState>();
    state->rows.resize(static_cast<size_t>(batch));
    return state;
  }

  // Only the last position follows the rule.
  Tensor forward_step(const Tensor& tokens_BS, nn::DecodeState& state) override {
    auto& history = dynamic_cast<HistoryState&>(state);
    Tensor next = at::zeros_like(tokens_BS);
    for (int64_t row = 0; row < tokens_BS.size(0); ++row) {
      auto& tokens = history.rows[static_cast<size_t>(row)];
      for (int64_t at = 0; at < tokens_BS.size(1); ++at) tokens.push_back(tokens_BS[row][at].item<int64_t>());
      next[row][tokens_BS.size(1) - 1] = rule_(tokens);
    }
    largest_step = std::max(largest_step, tokens_BS.numel());
    history.tokens += tokens_BS.size(1);
    return forward_hidden(next);
  }

  int64_t largest_max_tokens = 0, largest_step = 0;

 private:
  Rule rule_;
};

// What came after the latest earlier place with the same `length` last tokens, or `otherwise`.
inline RuleModel::Rule copies_after_the_same(size_t length, int64_t otherwise) {
  return [=](const std::vector<int64_t>& tokens) {
    if (tokens.size() <= length) return otherwise;
    const auto last = tokens.end() - static_cast<ptrdiff_t>(length);
    for (auto at = last; at-- != tokens.begin();) {
      if (std::equal(last, tokens.end(), at)) return *(at + static_cast<ptrdiff_t>(length));
    }
    return otherwise;
  };
}

}  // namespace distil_xlstm
