// What evaluation, generation and the losses need of a model, teacher or student. Letters: B batch, S sequence, D width, V vocabulary.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "nn/decode_state.h"
#include "ops/tensor.h"

namespace distil_xlstm::nn {

// Sees a tensor under its name.
using TensorVisitor = std::function<void(const std::string& name, const Tensor& tensor)>;

class LanguageModel {
 public:
  virtual ~LanguageModel() = default;

  // Hidden states after the final norm, the head's input: tokens_BS (int64) -> [B, S, D]. Rows start from the zero state and end
  // wherever they end: padding on the right changes nothing to its left. is_start_BS (uint8) or undefined: 1 cuts attention and state.
  [[nodiscard]] virtual Tensor forward_hidden(const Tensor& tokens_BS, const Tensor& is_start_BS = {}) = 0;

  // A state for `batch` sequences; max_tokens bounds a KV cache (ignored by recurrent models).
  [[nodiscard]] virtual std::unique_ptr<DecodeState> new_state(int64_t batch, int64_t max_tokens) = 0;

  // Appends tokens_BS to the state and returns their hidden states after the final norm [B, S, D]: prompt (S > 1) or one token.
  [[nodiscard]] virtual Tensor forward_step(const Tensor& tokens_BS, DecodeState& state) = 0;

  // Logits of hidden states [..., D] -> [..., V], float32. For a few positions only.
  [[nodiscard]] virtual Tensor logits(const Tensor& hidden) = 0;

  [[nodiscard]] virtual const Tensor& head_weight() const = 0;  // [V, D]
  [[nodiscard]] virtual int64_t vocab_size() const = 0;
  [[nodiscard]] virtual int64_t hidden_size() const = 0;
  [[nodiscard]] virtual at::Device device() const = 0;
  [[nodiscard]] virtual std::string description() const = 0;  // "Llama, 5 layers, 260.0 k parameters"
  [[nodiscard]] virtual std::string precision() const = 0;    // of its products: "fp32", "bf16", "fp16", "fp64", "fp8"

  // For checks and messages, slower than what they look at.
  // Every weight whose stored name begins with `prefix`, joined and packed ones taken apart again.
  virtual void for_each_weight(const TensorVisitor& visit, std::string_view prefix = "") const = 0;
  // forward_hidden, and what each part leaves, in their order; a part's name begins those of its weights ("model.layers.3").
  virtual Tensor forward_shown(const Tensor& tokens_BS, const Tensor& is_start_BS, const TensorVisitor& visit) = 0;
};

}  // namespace distil_xlstm::nn
