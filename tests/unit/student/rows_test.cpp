// Rows of a recurrent state that come, go and change places between steps, for every mixer.
#include "base/error.h"
#include "student/state.h"
#include "unit/nn/nn_testing.h"
#include "unit/student/student_testing.h"

namespace distil_xlstm::student {
namespace {

using testing::error_of;

class StudentRows : public testing::OpTest {};

Tensor list(const std::vector<int64_t>& rows) {
  return at::tensor(rows, at::kLong);
}

TEST_F(StudentRows, DecodingGoesOnAsForTheseRowsAlone) {
  for (const std::vector<int64_t>& slstm_at : {std::vector<int64_t>{}, {0, 1, 2, 3}, {0, 3}}) {
    StudentConfig config = small_config();
    config.slstm_at = slstm_at;
    for (const at::Device device : devices()) {
      SCOPED_TRACE(fmt::format("{} sLSTM blocks on {}", slstm_at.size(), device.str()));
      const auto student = small_student(config, device, at::kFloat, 0.1);
      Tensor tokens = random_tokens(config, 5, 6).to(device);
      const auto state = student->new_state(5, 0);
      std::ignore = student->forward_step(tokens, *state);
      const auto go_on = [&](int64_t count) {
        const Tensor next = random_tokens(config, tokens.size(0), count).to(device);
        const Tensor hidden = student->forward_step(next, *state);
        tokens = at::cat({tokens, next}, 1);
        const Tensor whole = student->forward_hidden(tokens, {});
        EXPECT_LT(relative_error(hidden, whole.narrow(1, whole.size(1) - count, count)), 1e-4) << tokens.size(0) << " rows";
      };
      const auto gather = [&](const std::vector<int64_t>& rows) {
        state->gather_rows(list(rows));
        tokens = tokens.index_select(0, list(rows).to(device));
      };
      gather({3, 0, 3, 4});
      go_on(1);
      {  // rows of their own, which go on apart
        const auto some = state->rows_at(list({2, 0}));
        const Tensor next = random_tokens(config, 2, 1).to(device);
        const Tensor whole = student->forward_hidden(at::cat({tokens.index_select(0, list({2, 0}).to(device)), next}, 1), {});
        EXPECT_LT(relative_error(student->forward_step(next, *some), whole.narrow(1, whole.size(1) - 1, 1)), 1e-4);
        EXPECT_EQ(some->num_tokens(), state->num_tokens() + 1);
      }
      go_on(2);
      const Tensor others = random_tokens(config, 3, tokens.size(1)).to(device);
      const auto other = student->new_state(3, 0);
      std::ignore = student->forward_step(others, *other);
      const int64_t size_of_four = state->size_bytes();
      state->append_rows(*other);
      tokens = at::cat({tokens, others});
      EXPECT_EQ(4 * state->size_bytes(), 7 * size_of_four);
      go_on(1);
      gather({6});
      EXPECT_EQ(4 * state->size_bytes(), size_of_four) << "more is kept than the rows that are left";
      go_on(1);
      state->append_rows(*state);
      tokens = at::cat({tokens, tokens});
      go_on(7);
      EXPECT_EQ(state->num_tokens(), tokens.size(1));
    }
  }
}

TEST_F(StudentRows, RefusesWhatCannotBe) {
  const StudentConfig config = small_config();
  const auto student = small_student(config, at::kCPU, at::kFloat, 0.1);
  const auto state = student->new_state(2, 0);
  const Tensor tokens = random_tokens(config, 2, 3);
  std::ignore = student->forward_step(tokens, *state);
  EXPECT_NE(error_of<ValueError>([&] { state->gather_rows(list({0, 2})); }).find("rows 0 to 2 of a batch of 2"), std::string::npos);
  EXPECT_NE(error_of<ShapeError>([&] { state->gather_rows(list({})); }).find("at least one"), std::string::npos);
  EXPECT_NE(error_of<ValueError>([&] { state->append_rows(*student->new_state(2, 0)); }).find("after 0 tokens cannot join rows after 3"),
            std::string::npos);
  StudentConfig other = config;
  other.slstm_at = {0, 1};  // in other blocks
  const auto stranger = small_student(other, at::kCPU, at::kFloat, 0.1);
  const auto another = stranger->new_state(2, 0);
  std::ignore = stranger->forward_step(tokens, *another);
  EXPECT_NE(error_of<ValueError>([&] { state->append_rows(*another); }).find("another model"), std::string::npos);
  const Tensor next = random_tokens(config, 2, 2);
  EXPECT_LT(relative_error(student->forward_step(next, *state), student->forward_hidden(at::cat({tokens, next}, 1), {}).narrow(1, 3, 2)),
            1e-4)
      << "a refusal has changed the state";
}

}  // namespace
}  // namespace distil_xlstm::student
