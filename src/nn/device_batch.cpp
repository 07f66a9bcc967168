#include "nn/device_batch.h"

namespace distil_xlstm::nn {

DeviceBatch DeviceBatch::rows(int64_t first, int64_t count) const {
  const auto narrowed = [&](const Tensor& x) { return x.defined() ? x.narrow(0, first, count) : x; };
  DeviceBatch part{narrowed(tokens_BS), narrowed(targets_BS), narrowed(mask_BS), narrowed(is_start_BS), {}};
  if (!row_ids.empty()) part.row_ids.assign(row_ids.begin() + first, row_ids.begin() + first + count);
  return part;
}

DeviceBatch to_device(const data::Batch& batch, at::Device device) {
  const std::vector<int64_t> shape = {batch.num_rows, batch.context_length};
  // From pinned memory.
  const auto moved = [&](const auto& values, at::ScalarType stored, at::ScalarType wanted) {
    const auto view = at::from_blob(const_cast<void*>(static_cast<const void*>(values.data())), shape, at::TensorOptions(stored));
    const Tensor host = at::empty(shape, at::TensorOptions(wanted).pinned_memory(!device.is_cpu())).copy_(view);
    return device.is_cpu() ? host : host.to(device, /*non_blocking=*/true);
  };
  bool has_inner_starts = false;
  for (size_t i = 0; i < batch.is_start.size(); ++i)
    has_inner_starts = has_inner_starts || (batch.is_start[i] != 0 && i % static_cast<size_t>(batch.context_length) != 0);
  return {moved(batch.tokens, at::kInt, at::kLong), moved(batch.targets, at::kInt, at::kLong), moved(batch.mask, at::kByte, at::kByte),
          has_inner_starts ? moved(batch.is_start, at::kByte, at::kByte) : Tensor(), batch.row_ids};
}

}  // namespace distil_xlstm::nn
