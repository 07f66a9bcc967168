#include "student/state.h"

namespace distil_xlstm::student {
namespace {

std::vector<Tensor*> tensors_of(MixerState& block) {
  std::vector<Tensor*> tensors;
  block.for_each([&](Tensor& tensor) { tensors.push_back(&tensor); });
  return tensors;
}

// Whether rows of one can stand behind rows of the other.
bool has_same_rows(const Tensor& a, const Tensor& b) {
  return a.dim() == b.dim() && a.sizes().slice(1) == b.sizes().slice(1) && a.scalar_type() == b.scalar_type() && a.device() == b.device();
}

}  // namespace

int64_t StudentState::size_bytes() const {
  int64_t sum = 0;
  for (const auto& block : blocks_) block->for_each([&](const Tensor& tensor) { sum += static_cast<int64_t>(tensor.storage().nbytes()); });
  return sum;
}

void StudentState::settle(MixerState& block) {
  block.for_each([](Tensor& tensor) {
    tensor = tensor.detach();
    if (tensor.storage().nbytes() != tensor.nbytes()) tensor = tensor.clone(at::MemoryFormat::Contiguous);
  });
}

void StudentState::gather_rows(const Tensor& rows) {
  const at::NoGradGuard no_grad;
  const Tensor checked = nn::checked_rows("student", rows, batch_, at::kCPU);
  Changes changes;
  for (const auto& block : blocks_) {
    for (Tensor* tensor : tensors_of(*block)) changes.emplace_back(tensor, tensor->index_select(0, checked.to(tensor->device())));
  }
  apply(changes, checked.numel());
}

std::unique_ptr<nn::DecodeState> StudentState::rows_at(const Tensor& rows) const {
  std::vector<std::unique_ptr<MixerState>> blocks;
  for (const auto& block : blocks_) blocks.push_back(block->clone());
  auto copy = std::make_unique<StudentState>(std::move(blocks), batch_);
  copy->num_tokens_ = num_tokens_;
  copy->gather_rows(rows);
  return copy;
}

void StudentState::append_rows(const DecodeState& other) {
  const at::NoGradGuard no_grad;
  const auto refuse = [] { throw ValueError("student: rows of another model's state cannot join these"); };
  const auto* state = dynamic_cast<const StudentState*>(&other);
  if (state == nullptr || state->blocks_.size() != blocks_.size()) return refuse();
  nn::check_same_tokens("student", *this, *state);
  Changes changes;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const auto added_block = state->blocks_[i]->clone();
    blocks_[i]->match(*added_block);
    const std::vector<Tensor*> own = tensors_of(*blocks_[i]), added = tensors_of(*added_block);
    if (own.size() != added.size()) return refuse();
    for (size_t j = 0; j < own.size(); ++j) {
      if (!has_same_rows(*own[j], *added[j])) return refuse();
      changes.emplace_back(own[j], at::cat({*own[j], *added[j]}));
    }
  }
  apply(changes, batch_ + state->batch_);
}

void StudentState::apply(const Changes& changes, int64_t batch) {
  for (const auto& [tensor, value] : changes) *tensor = value;
  batch_ = batch;
}

}  // namespace distil_xlstm::student
