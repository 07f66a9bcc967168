// Losses over some rows of the heads: as if the others were not there.
#include "ops/head_rows.h"

#include "base/error.h"
#include "ops/head_loss.h"
#include "unit/ops/op_testing.h"

namespace distil_xlstm::ops {
namespace {

using testing::devices;
using testing::relative_error;

class HeadRowsTest : public testing::OpTest {};

TEST_F(HeadRowsTest, AllRowsAreTheHeadItself) {
  const Tensor head = at::randn({5, 3}), ids = at::arange(5, at::kLong);
  EXPECT_TRUE(HeadRows().of_head(head).is_same(head));
  EXPECT_TRUE(HeadRows({}, 5, at::kCPU).of_head(head).is_same(head));
  EXPECT_TRUE(HeadRows({}, 5, at::kCPU).of_ids(ids).is_same(ids));
}

TEST_F(HeadRowsTest, PaddingAtTheEndIsCutOffWithoutACopy) {
  const std::vector<int32_t> padding = {3, 4};
  const HeadRows rows(padding, 5, at::kCPU);
  const Tensor head = at::randn({5, 3}), ids = at::tensor({0, 2, 1}, at::kLong);
  EXPECT_TRUE(rows.of_head(head).is_alias_of(head));
  EXPECT_TRUE(at::equal(rows.of_head(head), head.narrow(0, 0, 3)));
  EXPECT_TRUE(at::equal(rows.of_ids(ids), ids));
  EXPECT_THROW(HeadRows(std::vector<int32_t>{0, 1}, 2, at::kCPU), ShapeError);
}

// Values and gradient of all losses: those of heads that never had these rows.
TEST_F(HeadRowsTest, LossesAreThoseOfHeadsWithoutTheRows) {
  const int64_t V = 17, B = 2, S = 5;
  for (const at::Device device : devices()) {
    for (const std::vector<int32_t>& left_out : {std::vector<int32_t>{15, 16}, {0, 3, 4, 16}, {2}}) {
      const HeadRows rows(left_out, V, device);
      std::vector<int64_t> kept;
      for (int32_t row = 0; row < V; ++row) {
        if (std::find(left_out.begin(), left_out.end(), row) == left_out.end()) kept.push_back(row);
      }
      const Tensor kept_rows = at::tensor(kept, at::kLong);
      const Tensor student = testing::randn({B, S, 6}), teacher = testing::randn({B, S, 4}), student_head = testing::randn({V, 6}),
                   teacher_head = testing::randn({V, 4}), mask = (at::rand({B, S}) < 0.8).to(at::kByte);
      mask[0][0] = 1;
      const Tensor places = at::randint(static_cast<int64_t>(kept.size()), {B, S}, at::kLong);
      const Tensor ids = kept_rows.index_select(0, places.flatten()).view({B, S});
      const HeadObjective options{
          .ce_weight = 0.3, .kd_weight = 0.5, .mse_weight = 0.1, .label_weight = 0.1, .label_mix = 0.4, .temperature = 1.5};
      const auto run = [&](const Tensor& a, const Tensor& b, const Tensor& targets) {
        return head_losses(student.to(device), a, teacher.to(device), b, targets, mask.to(device), options, 1.0);
      };
      const auto expected =
          run(student_head.index_select(0, kept_rows).to(device), teacher_head.index_select(0, kept_rows).to(device), places.to(device));
      const auto found = run(rows.of_head(student_head.to(device)), rows.of_head(teacher_head.to(device)), rows.of_ids(ids.to(device)));
      EXPECT_LT(relative_error(found.sums, expected.sums), 1e-10);
      EXPECT_LT(relative_error(found.grad_student_hidden_BSD, expected.grad_student_hidden_BSD), 1e-10);
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::ops
