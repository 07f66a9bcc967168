// What a model carries from token to token: a KV cache, or a recurrent state of constant size.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "ops/tensor.h"

namespace distil_xlstm::nn {

class DecodeState {
 public:
  virtual ~DecodeState() = default;
  [[nodiscard]] virtual int64_t size_bytes() const = 0;
  [[nodiscard]] virtual int64_t num_tokens() const = 0;  // tokens seen, by every row

  // Between two steps, the rows of the batch become the old ones at these places (int64, at least one): others are dropped, one may come
  // twice, in any order. Throws ShapeError or ValueError, and then changes nothing.
  virtual void gather_rows(const Tensor& rows) = 0;
  // The rows of another state of the same model come behind these. Throws ValueError where they cannot be joined, as after another number
  // of tokens, and then changes nothing.
  virtual void append_rows(const DecodeState& other) = 0;
  // A state of its own with the rows at these places, as gather_rows takes them. Throws ShapeError or ValueError.
  [[nodiscard]] virtual std::unique_ptr<DecodeState> rows_at(const Tensor& rows) const = 0;
};

// For those who derive. The places for gather_rows on `device`, checked; `what` begins the messages.
Tensor checked_rows(std::string_view what, const Tensor& rows, int64_t batch, at::Device device);
// Throws ValueError unless both have seen as many tokens.
void check_same_tokens(std::string_view what, const DecodeState& state, const DecodeState& other);

}  // namespace distil_xlstm::nn
