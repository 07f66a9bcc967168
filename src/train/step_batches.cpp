#include "train/step_batches.h"

#include <utility>

namespace distil_xlstm::train {

std::vector<data::Batch> StepBatches::take(bool reads_next) {
  auto batches = next_.empty() ? read() : std::exchange(next_, {});
  if (batches.empty() || !reads_next) return batches;
  place_before_next_ = loader_.state();
  next_ = read();
  return batches;
}

std::vector<data::Batch> StepBatches::read() {
  std::vector<data::Batch> batches;
  data::Batch batch;
  while (static_cast<int64_t>(batches.size()) < accumulation_steps_ && loader_.next(batch)) batches.push_back(batch);
  return batches;
}

data::Batch first_row(const data::Batch& batch) {
  const auto row = [&](const auto& values) {
    return std::decay_t<decltype(values)>(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(batch.context_length));
  };
  data::Batch first;
  first.num_rows = 1;
  first.context_length = batch.context_length;
  first.tokens = row(batch.tokens);
  first.targets = row(batch.targets);
  first.mask = row(batch.mask);
  first.is_start = row(batch.is_start);
  if (!batch.row_ids.empty()) first.row_ids = {batch.row_ids.front()};
  return first;
}

}  // namespace distil_xlstm::train
