// The state of a student: what decoding and truncated training carry from one segment to the next. Recurrent mixers' is of constant size.
#pragma once

#include <memory>
#include <vector>

#include "nn/language_model.h"
#include "student/mixer.h"

namespace distil_xlstm::student {

class StudentState final : public nn::DecodeState {
 public:
  StudentState(std::vector<std::unique_ptr<MixerState>> blocks, int64_t batch) : blocks_(std::move(blocks)), batch_(batch) {}

  // What is held in memory, not what the tensors show of it.
  [[nodiscard]] int64_t size_bytes() const override;
  [[nodiscard]] int64_t num_tokens() const override { return num_tokens_; }
  [[nodiscard]] int64_t batch() const { return batch_; }
  [[nodiscard]] const std::vector<std::unique_ptr<MixerState>>& blocks() const { return blocks_; }

  // After a block has run: cut from the graph, and from larger tensors that these are parts of.
  static void settle(MixerState& block);
  void advance(int64_t count) { num_tokens_ += count; }

  void gather_rows(const Tensor& rows) override;
  void append_rows(const DecodeState& other) override;
  [[nodiscard]] std::unique_ptr<DecodeState> rows_at(const Tensor& rows) const override;

 private:
  // Made before any of them takes effect: an error leaves the state whole.
  using Changes = std::vector<std::pair<Tensor*, Tensor>>;
  void apply(const Changes& changes, int64_t batch);

  std::vector<std::unique_ptr<MixerState>> blocks_;
  int64_t batch_;
  int64_t num_tokens_ = 0;
};

}  // namespace distil_xlstm::student
