// Rows of a KV cache that come, go and change places between steps.
#include "unit/teacher/teacher_testing.h"

namespace distil_xlstm::teacher {
namespace {

using testing::devices;
using testing::error_of;
using testing::relative_error;

class TeacherRows : public testing::OpTest {};

json odd_config() {
  return {{"model_type", "qwen3"},    {"vocab_size", 19},       {"hidden_size", 14},
          {"intermediate_size", 9},   {"num_hidden_layers", 3}, {"num_attention_heads", 3},
          {"num_key_value_heads", 1}, {"head_dim", 6},          {"tie_word_embeddings", true}};
}

std::unique_ptr<Teacher> odd_teacher(at::Device device, at::ScalarType dtype = at::kFloat) {
  return random_teacher(odd_config(), device, {dtype, false}, at::kCPU, 0.4);
}

Tensor random_tokens(int64_t rows, int64_t length) {
  return at::randint(19, {rows, length}, at::kLong);
}

Tensor list(const std::vector<int64_t>& rows) {
  return at::tensor(rows, at::kLong);
}

// Dropped, twice, in another order; then those of another state; then most of them gone.
TEST_F(TeacherRows, DecodingGoesOnAsForTheseRowsAlone) {
  for (const at::Device device : devices()) {
    const auto teacher = odd_teacher(device);
    Tensor tokens = random_tokens(5, 4).to(device);
    const auto state = teacher->new_state(5, 13);
    std::ignore = teacher->forward_step(tokens, *state);
    // The next tokens of all rows, beside those of the rows alone from the beginning.
    const auto go_on = [&](int64_t count) {
      const Tensor next = random_tokens(tokens.size(0), count).to(device);
      const Tensor hidden = teacher->forward_step(next, *state);
      tokens = at::cat({tokens, next}, 1);
      EXPECT_EQ(state->num_tokens(), tokens.size(1));
      const Tensor whole = teacher->forward_hidden(tokens);
      EXPECT_LT(relative_error(hidden, whole.narrow(1, whole.size(1) - count, count)), 1e-5) << device.str() << ", " << tokens.size(0);
    };
    const auto gather = [&](const std::vector<int64_t>& rows) {
      state->gather_rows(list(rows));
      tokens = tokens.index_select(0, list(rows).to(device));
    };
    gather({3, 0, 3, 4});
    go_on(1);
    {  // rows of their own, which go on apart
      const auto some = state->rows_at(list({2, 0}));
      const Tensor next = random_tokens(2, 1).to(device);
      const Tensor whole = teacher->forward_hidden(at::cat({tokens.index_select(0, list({2, 0}).to(device)), next}, 1));
      EXPECT_LT(relative_error(teacher->forward_step(next, *some), whole.narrow(1, whole.size(1) - 1, 1)), 1e-4);
      EXPECT_EQ(some->num_tokens(), state->num_tokens() + 1);
    }
    go_on(2);
    const Tensor others = random_tokens(3, tokens.size(1)).to(device);
    const auto other = teacher->new_state(3, 7);  // its room just fits
    std::ignore = teacher->forward_step(others, *other);
    state->append_rows(*other);
    tokens = at::cat({tokens, others});
    go_on(1);
    gather({6});
    go_on(1);
    state->append_rows(*state);
    tokens = at::cat({tokens, tokens});
    go_on(3);
    EXPECT_EQ(other->num_tokens(), 7);
    EXPECT_EQ(state->num_tokens(), 12);
  }
}

TEST_F(TeacherRows, StatesThatHaveSeenNothing) {
  const auto teacher = odd_teacher(at::kCPU);
  const auto state = teacher->new_state(2, 5), other = teacher->new_state(1, 5);
  state->gather_rows(list({1, 1, 0}));
  state->append_rows(*other);
  const Tensor tokens = random_tokens(4, 5);
  EXPECT_LT(relative_error(teacher->forward_step(tokens, *state), teacher->forward_hidden(tokens)), 1e-5);
}

TEST_F(TeacherRows, RefusesWhatCannotBe) {
  const auto teacher = odd_teacher(at::kCPU);
  const auto state = teacher->new_state(2, 5);
  const Tensor tokens = random_tokens(2, 3);
  std::ignore = teacher->forward_step(tokens, *state);
  EXPECT_NE(error_of<ValueError>([&] { state->gather_rows(list({0, 2})); }).find("rows 0 to 2 of a batch of 2"), std::string::npos);
  EXPECT_NE(error_of<ValueError>([&] { state->gather_rows(list({-1})); }).find("-1"), std::string::npos);
  EXPECT_NE(error_of<ShapeError>([&] { state->gather_rows(list({})); }).find("at least one"), std::string::npos);
  EXPECT_NE(error_of<ShapeError>([&] { state->gather_rows(at::zeros({1})); }).find("int64"), std::string::npos);
  EXPECT_NE(error_of<ShapeError>([&] { state->gather_rows({}); }).find("not given"), std::string::npos);
  const auto later = teacher->new_state(2, 5);
  EXPECT_NE(error_of<ValueError>([&] { state->append_rows(*later); }).find("rows after 0 tokens cannot join rows after 3"),
            std::string::npos);
  json deeper = odd_config();
  deeper["num_hidden_layers"] = 4;
  const auto another = random_teacher(deeper, at::kCPU, {at::kFloat, false}, at::kCPU)->new_state(2, 5);
  EXPECT_NE(error_of<ValueError>([&] { state->append_rows(*another); }).find("another model"), std::string::npos);
  const auto half = odd_teacher(at::kCPU, at::kBFloat16)->new_state(2, 5);
  EXPECT_NE(error_of<ValueError>([&] { state->append_rows(*half); }).find("another model"), std::string::npos);
  const Tensor next = random_tokens(2, 2);
  EXPECT_LT(relative_error(teacher->forward_step(next, *state), teacher->forward_hidden(at::cat({tokens, next}, 1)).narrow(1, 3, 2)), 1e-5)
      << "a refusal has changed the state";
}

}  // namespace
}  // namespace distil_xlstm::teacher
