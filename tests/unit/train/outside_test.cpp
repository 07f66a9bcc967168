// Methods, loss terms and teacher sources from outside, through the public registries, in the trainer that every run has.
#include "base/error.h"
#include "small_run.h"
#include "support/outside_objective.h"

namespace distil_xlstm::train {
namespace {

class OutsideTest : public RunTest {
 protected:
  void SetUp() override {
    RunTest::SetUp();
    testing::add_outside_method();
    testing::add_remembering_source();
    data_ = folder_ / "data";
    write_rows(data_, data::Split::train, 21, 1);
    write_rows(data_, data::Split::validation, 5, 2);
    config_ = small_config();
    config_.distill.method = "outside";
  }

  fs::path data_;
  config::RunConfig config_;
};

TEST_F(OutsideTest, AMethodIsTrainedInItsStagesAndResumed) {
  SmallRun whole(config_, data_, folder_ / "whole");
  const auto before = copies_of(whole.student->parameters());
  const auto traits = whole.student->parameter_traits();
  EXPECT_EQ(whole.trainer->run(), TrainStatus::finished);

  const auto steps = records_of(folder_ / "whole", "train");
  ASSERT_EQ(steps.size(), 12U);
  for (const json& step : steps) {
    const bool is_first = step["step"].get<int64_t>() <= testing::OutsideMethod::kFirstSteps;
    EXPECT_EQ(step["stage"], is_first ? 1 : 2);
    const double loss = is_first ? step["state_error"].get<double>()
                                 : 0.5 * step["ce_loss"].get<double>() + 2.0 * step["probability_error"].get<double>() +
                                       0.25 * step["state_error"].get<double>();
    EXPECT_NEAR(step["loss"].get<double>(), loss, 1e-9);
    const bool is_due = (step["step"].get<int64_t>() - 1) % config_.distill.alignment.every_steps == 0;
    EXPECT_EQ(step["alignment_loss"].is_number(), is_due) << "measured without a weight";
  }
  EXPECT_LT(steps.back()["state_error"].get<double>(), steps.front()["state_error"].get<double>());

  // What the first stage does not train stays as it was, to the bit.
  SmallRun first(config_, data_, folder_ / "first", "", testing::OutsideMethod::kFirstSteps);
  first.trainer->run();
  for (size_t i = 0; i < traits.size(); ++i) {
    const auto& [name, now] = first.student->parameters()[i];
    EXPECT_EQ(at::equal(now.detach(), before[i].second), traits[i].group != "norm") << name;
    EXPECT_FALSE(now.grad().defined()) << name;
  }

  // Stopped in each stage and at their border.
  for (const int64_t stop : {int64_t{2}, testing::OutsideMethod::kFirstSteps, int64_t{7}}) {
    const auto parts = folder_ / fmt::format("parts-{}", stop);
    SmallRun(config_, data_, parts, "", stop).trainer->run();
    SmallRun resumed(config_, data_, parts, checkpoint_at(parts, stop)->string());
    resumed.trainer->run();
    EXPECT_EQ(max_difference(resumed.student->parameters(), whole.student->parameters()), 0.0) << stop;
  }
}

TEST_F(OutsideTest, WhatAStageNamesMustBeThere) {
  distill::Stage stage{.name = "stage I", .rates = {{"norms", 1.0}}};
  SmallRun run(config_, data_, folder_ / "run");
  TrainingStep step({.config = run.config,
                     .teacher = *run.source,
                     .student = *run.student,
                     .method = *run.plan->method,
                     .objective = run.plan->objective});
  EXPECT_THROW(step.begin_stage(stage), ConfigError);
  stage = {.name = "stage I", .takes_teacher_inputs = true};
  EXPECT_THROW(step.begin_stage(stage), ConfigError) << "five layers, two blocks";
}

// The gradient of all terms together, in float64, against differences of their weighted sum.
TEST_F(OutsideTest, GradientsOfTermsAreThoseOfDifferences) {
  const auto files = io::open_model("stories260K");
  auto& teacher = small_teacher();
  auto shape = student::derive_student(small_config().student, teacher::teacher_shape(files.config), 12);
  const auto student = student::PaperStudent::create(shape, teacher.embedding_weight().to(at::kDouble),
                                                     teacher.head_weight().to(at::kDouble), 3, at::kCPU, at::kDouble);
  teacher::LiveTeacher source(teacher);
  const distill::Objective objective(config_.distill, teacher.num_layers(), student->shape().num_layers());
  MicroBatches micro_batches(source, *student, objective);
  const testing::OutsideMethod method;
  const auto plan = method.plan({.stage = 1});
  GradientSettings settings;
  settings.head = plan.head;
  settings.added_head_terms = objective.added_head_terms(plan);
  settings.measured = {true, true};
  settings.hidden_scales = {0.25, 0.5};  // the alignment too

  std::mt19937_64 random(4);
  data::Batch batch{.num_rows = 3, .context_length = 12};
  for (int64_t i = 0; i < 36; ++i) {
    batch.tokens.push_back(static_cast<int32_t>(random() % 512));
    batch.targets.push_back(static_cast<int32_t>(random() % 512));
    batch.mask.push_back(random() % 5 != 0);
    batch.is_start.push_back(i % 12 == 0 || random() % 7 == 0);
  }
  const auto loss = [&] {
    const LossSums sums = micro_batches.run({batch}, settings);
    const Tensor head = sums.head;
    return 0.5 * head[ops::kCe].item<double>() + 2.0 * head[ops::kNumHeadSums].item<double>() + 0.25 * sums.hidden[0].item<double>() +
           0.5 * sums.hidden[1].item<double>();
  };
  at::manual_seed(11);
  for (const auto& [name, parameter] : student->parameters()) {
    for (const auto& [other, tensor] : student->parameters()) Tensor(tensor).mutable_grad() = Tensor();
    (void)loss();
    const Tensor gradient = parameter.grad().clone(), direction = at::randn_like(gradient);
    const double expected = (gradient * direction).sum().item<double>();
    const auto moved = [&](double step) {
      const at::NoGradGuard no_grad;
      Tensor(parameter).add_(direction, step);
      const at::AutoGradMode with_graph(true);
      const double value = loss();
      const at::NoGradGuard again;
      Tensor(parameter).sub_(direction, step);
      return value;
    };
    const double step = 1e-5, difference = (moved(step) - moved(-step)) / (2 * step);
    EXPECT_NEAR(difference, expected, 1e-5 * std::max(1.0, std::abs(expected))) << name;
  }
}

// Rows have the same identity in every order, so that what was said of them in the first epoch serves the second, and validation.
TEST_F(OutsideTest, ATeacherSourceThatRemembersRowsTrainsTheSameStudent) {
  config_.distill.method = "delta-frobenius";
  config_.train.micro_batch_size = 1;  // one row at a time, as the source asks: the same products
  config_.train.gradient_accumulation_steps = 4;
  SmallRun live(config_, data_, folder_ / "live");
  live.trainer->run();
  SmallRun remembering(config_, data_, folder_ / "remembering", "", 0, {}, "remembering");
  remembering.trainer->run();
  EXPECT_EQ(max_difference(remembering.student->parameters(), live.student->parameters()), 0.0);
  const auto& source = dynamic_cast<testing::RememberingSource&>(*remembering.source);
  EXPECT_EQ(source.num_asked, 21 + 5);
  config_.distill.alignment.kind = config::AlignmentKind::ratio;
  SmallRun refused(config_, data_, folder_ / "refused", "", 0, {}, "remembering");
  EXPECT_THROW(refused.trainer->run(), ConfigError);
  EXPECT_THROW((void)teacher::make_teacher_source("remembring", small_teacher()), ConfigError);
}

}  // namespace
}  // namespace distil_xlstm::train
