#include "nn/device_batch.h"

#include <gtest/gtest.h>

#include "support/devices.h"

namespace distil_xlstm::nn {
namespace {

using testing::devices;

TEST(ToDevice, KeepsDocumentsThatBeginInsideARow) {
  for (const at::Device device : devices()) {
    data::Batch batch{.num_rows = 2, .context_length = 3, .tokens = {1, 2, 3, 4, 5, 6}, .targets = {2, 3, 0, 5, 6, 7}};
    batch.mask = {1, 1, 0, 1, 1, 1};
    batch.is_start = {1, 0, 0, 1, 0, 0};
    const DeviceBatch without = to_device(batch, device);
    EXPECT_FALSE(without.is_start_BS.defined()) << "rows begin anew anyway";
    batch.is_start = {1, 0, 0, 1, 0, 1};
    const DeviceBatch moved = to_device(batch, device);
    batch.tokens.assign(6, -1);  // it is a copy
    EXPECT_TRUE(moved.tokens_BS.cpu().equal(at::tensor({1, 2, 3, 4, 5, 6}, at::kLong).view({2, 3})));
    EXPECT_TRUE(moved.targets_BS.cpu().equal(at::tensor({2, 3, 0, 5, 6, 7}, at::kLong).view({2, 3})));
    EXPECT_TRUE(moved.mask_BS.cpu().equal(at::tensor({1, 1, 0, 1, 1, 1}, at::kByte).view({2, 3})));
    EXPECT_TRUE(moved.is_start_BS.cpu().equal(at::tensor({1, 0, 0, 1, 0, 1}, at::kByte).view({2, 3})));
    EXPECT_EQ(moved.is_start_BS.device(), device);
  }
}

}  // namespace
}  // namespace distil_xlstm::nn
