// What a kept attention layer carries from token to token: keys and values of the whole text, or of its last tokens and of the first ones
// of the document that goes on. Letters: B rows, S new tokens, G heads of keys and values, K channels, T columns that there is room for, C
// those that are filled.
#pragma once

#include "student/mixer.h"

namespace distil_xlstm::student {

// Which earlier tokens of its document a token sees.
struct AttentionSpan {
  int64_t window = 0;  // itself and those before it, so many in all; 0: the whole document
  int64_t sinks = 0;   // and so many of the document's first
};

// What of them is filled.
struct AttentionColumns {
  Tensor k_BGCK, v_BGCK;
  int64_t num_sinks = 0;  // the first columns are a document's first tokens, of which the others show none
};

class AttentionState final : public MixerState {
 public:
  // Of no token yet. `options`: of keys and values.
  AttentionState(const AttentionSpan& span, int64_t batch, int64_t num_kv_heads, int64_t head_dim, const at::TensorOptions& options);

  [[nodiscard]] int64_t num_tokens() const { return num_tokens_; }  // seen, by every row
  // The position where each row's document began [B], or undefined: with the row.
  [[nodiscard]] Tensor first_B() const { return hides_ ? first_B_ : Tensor(); }
  [[nodiscard]] AttentionColumns columns() const;
  // Where in the row each column's token stands [B, C]; -1: none yet.
  [[nodiscard]] Tensor positions_BC() const;
  // The next tokens: keys and values [B, G, S, K], and where each row's document began by the last of them; undefined: no document began.
  // Without a window the room grows by half, so that a token costs the same however long the text.
  void append(const Tensor& k_BGSK, const Tensor& v_BGSK, const Tensor& first_B);

  void for_each(const std::function<void(Tensor&)>& visit) override;
  // With tensors of its own: tokens are written into those that are there.
  [[nodiscard]] std::unique_ptr<MixerState> clone() const override;
  void reserve(int64_t max_tokens) override;
  void match(MixerState& other) override;

 private:
  [[nodiscard]] int64_t num_filled() const;
  void grow(int64_t room);
  void write(int64_t column, const Tensor& k_BGSK, const Tensor& v_BGSK, int64_t begin, int64_t count);
  void write_window(const Tensor& k_BGSK, const Tensor& v_BGSK);
  void write_sinks(const Tensor& k_BGSK, const Tensor& v_BGSK);

  AttentionSpan span_;
  // With a window: its sinks' columns, then a ring in which position p stands at (p - sinks) % window.
  Tensor keys_BGTK_, values_BGTK_;
  Tensor first_B_;      // int64
  bool hides_ = false;  // whether a document may have begun inside a row
  int64_t num_tokens_ = 0;
};

}  // namespace distil_xlstm::student
