// Token by token beside the whole text, for every mixer, type and number of rows; and that nothing of a student changes on the way.
#include "ops/head_loss.h"
#include "unit/student/student_testing.h"

namespace distil_xlstm::student {
namespace {

class StudentDecoding : public testing::OpTest {};

std::map<std::string, Tensor> copied_weights(const Student& student) {
  std::map<std::string, Tensor> copies;
  student.for_each_weight([&](const std::string& name, const Tensor& weight) { copies[name] = weight.detach().clone(); });
  return copies;
}

void expect_unchanged(const Student& student, const std::map<std::string, Tensor>& before) {
  size_t seen = 0;
  student.for_each_weight([&](const std::string& name, const Tensor& weight) {
    EXPECT_TRUE(at::equal(weight, before.at(name))) << name;
    ++seen;
  });
  EXPECT_EQ(seen, student.parameters().size() + 2) << "with embedding and head";
}

TEST_F(StudentDecoding, EqualsTheWholeTextAndChangesNoParameter) {
  for (const std::vector<int64_t>& slstm_at : {std::vector<int64_t>{}, {0, 1, 2, 3}, {0, 3}}) {
    for (const bool has_bias : {false, true}) {
      StudentConfig config = small_config();
      config.slstm_at = slstm_at;
      config.bias = config.ffn_bias = has_bias;
      for (const at::Device device : devices()) {
        const auto student = small_student(config, device, at::kFloat, 0.1);
        const auto before = copied_weights(*student);
        for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
          student->set_compute_dtype(type);
          for (const int64_t rows : {1, 3}) {
            for (const int64_t prompt : {1, 6}) {
              SCOPED_TRACE(fmt::format("{} sLSTM blocks on {} in {}, {} rows, prompt of {}", slstm_at.size(), device.str(),
                                       c10::toString(type), rows, prompt));
              const Tensor tokens = random_tokens(config, rows, 11).to(device);
              const Tensor whole = student->forward_hidden(tokens, {});
              const auto state = student->new_state(rows, 11);
              std::vector<Tensor> parts{student->forward_step(tokens.narrow(1, 0, prompt), *state)};
              for (int64_t at = prompt; at < 11; ++at) parts.push_back(student->forward_step(tokens.narrow(1, at, 1), *state));
              // Four blocks round their products in half precision, each form's at other places.
              EXPECT_LT(relative_error(at::cat(parts, 1), whole), type == at::kFloat ? 1e-4 : 5e-2);
              EXPECT_TRUE(at::equal(student->forward_hidden(tokens, {}), whole)) << "decoding has changed the student";
            }
          }
        }
        expect_unchanged(*student, before);
      }
    }
  }
}

TEST_F(StudentDecoding, ForwardAndBackwardChangeNoParameter) {
  StudentConfig config = small_config();
  config.bias = config.ffn_bias = true;
  for (const at::Device device : devices()) {
    const auto student = small_student(config, device, at::kFloat, 0.1);
    const auto before = copied_weights(*student);
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const bool checkpoints : {false, true}) {
        for (const int64_t rows : {1, 2}) {
          const Tensor tokens = random_tokens(config, rows, 7).to(device), projection = at::randn({rows, 7, config.embedding_dim});
          (void)parameter_gradients(*student, tokens, {}, {.compute_dtype = type, .activation_checkpointing = checkpoints}, projection);
          (void)parameter_gradients(*student, tokens.narrow(1, 0, 1), {}, {.compute_dtype = type}, projection.narrow(1, 0, 1));
        }
      }
    }
    expect_unchanged(*student, before);
  }
}

}  // namespace
}  // namespace distil_xlstm::student
