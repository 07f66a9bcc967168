// The recurrent state of a student: what decoding and truncated training carry from one segment to the next. Its size is constant.
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
  [[nodiscard]] int64_t size_bytes() const override {
    int64_t sum = 0;
    for (const auto& block : blocks_)
      block->for_each([&](const Tensor& tensor) { sum += static_cast<int64_t>(tensor.storage().nbytes()); });
    return sum;
  }
  [[nodiscard]] int64_t num_tokens() const override { return num_tokens_; }
  [[nodiscard]] int64_t batch() const { return batch_; }
  [[nodiscard]] const std::vector<std::unique_ptr<MixerState>>& blocks() const { return blocks_; }

  // After a block has run: cut from the graph, and from larger tensors that these are parts of.
  static void settle(MixerState& block) {
    block.for_each([](Tensor& tensor) {
      tensor = tensor.detach();
      if (tensor.storage().nbytes() != tensor.nbytes()) tensor = tensor.clone(at::MemoryFormat::Contiguous);
    });
  }
  void advance(int64_t count) { num_tokens_ += count; }

 private:
  std::vector<std::unique_ptr<MixerState>> blocks_;
  int64_t batch_;
  int64_t num_tokens_ = 0;
};

}  // namespace distil_xlstm::student
