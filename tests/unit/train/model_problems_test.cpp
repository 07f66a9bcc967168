// Steps whose figures are not finite: whose fault it is, and what is then done.
#include "unit/train/small_run.h"

namespace distil_xlstm::train {
namespace {

using ::testing::HasSubstr;

// The small teacher, whose figures are not finite while `fails` is set.
class FailingTeacher final : public teacher::Teacher {
 public:
  bool fails = false;

  teacher::TeacherOutput forward(const Tensor& tokens, const Tensor& starts, const teacher::TeacherForwardOptions& options) override {
    auto output = small_teacher().forward(tokens, starts, options);
    output.last_hidden_BSD = spoilt(output.last_hidden_BSD);
    return output;
  }
  Tensor forward_hidden(const Tensor& tokens, const Tensor& starts) override {
    return spoilt(small_teacher().forward_hidden(tokens, starts));
  }
  Tensor forward_shown(const Tensor& tokens, const Tensor& starts, const nn::TensorVisitor& visit) override {
    return small_teacher().forward_shown(tokens, starts,
                                         [&](const std::string& name, const Tensor& output) { visit(name, spoilt(output)); });
  }
  std::unique_ptr<nn::DecodeState> new_state(int64_t batch, int64_t max_tokens) override {
    return small_teacher().new_state(batch, max_tokens);
  }
  Tensor forward_step(const Tensor& tokens, nn::DecodeState& state) override { return small_teacher().forward_step(tokens, state); }
  Tensor logits(const Tensor& hidden) override { return small_teacher().logits(hidden); }
  void for_each_weight(const nn::TensorVisitor& visit, std::string_view prefix) const override {
    small_teacher().for_each_weight(visit, prefix);
  }
  void use_fp8_products() override {}
  [[nodiscard]] const Tensor& head_weight() const override { return small_teacher().head_weight(); }
  [[nodiscard]] const Tensor& embedding_weight() const override { return small_teacher().embedding_weight(); }
  [[nodiscard]] bool has_tied_head() const override { return small_teacher().has_tied_head(); }
  [[nodiscard]] int64_t vocab_size() const override { return small_teacher().vocab_size(); }
  [[nodiscard]] int64_t hidden_size() const override { return small_teacher().hidden_size(); }
  [[nodiscard]] int64_t num_layers() const override { return small_teacher().num_layers(); }
  [[nodiscard]] int64_t num_parameters() const override { return small_teacher().num_parameters(); }
  [[nodiscard]] at::Device device() const override { return at::kCPU; }
  [[nodiscard]] std::string description() const override { return "failing"; }
  [[nodiscard]] std::string precision() const override { return "fp16"; }

 private:
  [[nodiscard]] Tensor spoilt(const Tensor& hidden) const { return fails ? at::full_like(hidden, std::nan("")) : hidden; }
};

class ModelProblems : public RunTest {
 protected:
  void SetUp() override {
    RunTest::SetUp();
    write_rows(folder_ / "data", data::Split::train, 24, 1);
    write_rows(folder_ / "data", data::Split::validation, 4, 2);
    config_ = small_config();
    config_.teacher.model = "t";
    config_.eval.every_steps = 0;
    config_.distill.method = "hinton";
    small_ = std::make_unique<SmallRun>(config_, folder_ / "data", folder_ / "unused");
    fs::create_directories(folder_ / "run");
  }

  std::unique_ptr<Trainer> make_trainer(data::Loader* validation = nullptr) {
    return std::make_unique<Trainer>(TrainerInputs{.config = config_,
                                                   .plan = *small_->plan,
                                                   .teacher = source_,
                                                   .student = *small_->student,
                                                   .train = *small_->train,
                                                   .validation = validation,
                                                   .run = folder_ / "run"});
  }

  static std::string error_of(Trainer& trainer) {
    try {
      trainer.run();
      return "<no exception>";
    } catch (const Error& error) {
      EXPECT_EQ(error.exit_code(), 1);
      return error.what();
    }
  }

  std::vector<data::Batch> batches() const {
    std::vector<data::Batch> taken(1);
    small_->train->next(taken.front());
    return taken;
  }

  config::RunConfig config_;
  std::unique_ptr<SmallRun> small_;
  FailingTeacher teacher_;
  teacher::LiveTeacher source_{teacher_};
};

TEST_F(ModelProblems, ATeacherThatFailsFromTheStartEndsTheRunAtOnce) {
  teacher_.fails = true;
  EXPECT_EQ(
      error_of(*make_trainer()),
      "step 0: t in fp16: the output of model.embed_tokens is not finite: its values outgrow fp16: set teacher.precision to bf16 or fp32");
  EXPECT_THAT(error_of(*make_trainer(small_->validation.get())), HasSubstr("step 0: validation: t in fp16: "));
}

TEST_F(ModelProblems, ATeacherThatFailsOnceChangesNothingButTheStep) {
  const auto trainer = make_trainer();
  EXPECT_FALSE(trainer->train_step(batches()).is_skipped);
  teacher_.fails = true;
  for (int step = 0; step < 2; ++step) {
    const auto result = trainer->train_step(batches());
    EXPECT_TRUE(result.is_skipped && result.is_teachers_problem);
    EXPECT_THAT(result.model_problem, HasSubstr("t in fp16: "));
  }
  teacher_.fails = false;
  const auto result = trainer->train_step(batches());
  EXPECT_FALSE(result.is_skipped);
  EXPECT_EQ(result.learning_rate_scale, 1.0) << "the student's learning rate was not at fault";
  EXPECT_EQ(trainer->state().step, 2);
}

TEST_F(ModelProblems, AStudentIsNamedByItsBlockAndWeight) {
  const auto trainer = make_trainer();
  const auto& [name, weight] = small_->student->parameters()[3];
  {
    const at::NoGradGuard no_grad;
    Tensor(weight).fill_(std::nan(""));
  }
  const auto result = trainer->train_step(batches());
  EXPECT_TRUE(result.is_skipped);
  EXPECT_FALSE(result.is_teachers_problem);
  EXPECT_EQ(result.model_problem, fmt::format("the student in fp32: '{}' holds values that are not finite", name));
}

}  // namespace
}  // namespace distil_xlstm::train
