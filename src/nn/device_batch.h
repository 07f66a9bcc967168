// A micro-batch on the device of a model.
#pragma once

#include <vector>

#include "data/loader.h"
#include "ops/tensor.h"

namespace distil_xlstm::nn {

// Letters: B rows, S tokens.
struct DeviceBatch {
  Tensor tokens_BS, targets_BS;      // int64
  Tensor mask_BS, is_start_BS;       // uint8; is_start_BS undefined where documents begin at rows' starts only
  std::vector<data::RowId> row_ids;  // on the host, one a row

  // Views of some rows.
  [[nodiscard]] DeviceBatch rows(int64_t first, int64_t count) const;
};

// A copy that waits for nothing that a GPU still has to do.
DeviceBatch to_device(const data::Batch& batch, at::Device device);

}  // namespace distil_xlstm::nn
