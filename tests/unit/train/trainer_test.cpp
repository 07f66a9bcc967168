#include <signal.h>

#include <fstream>

#include "base/error.h"
#include "base/signals.h"
#include "config/settings.h"
#include "distill/alignment.h"
#include "small_run.h"
#include "student/registry.h"
#include "support/decay_mixer.h"
#include "train/setting_checks.h"

namespace distil_xlstm::train {
namespace {

using ::testing::HasSubstr;

class TrainerTest : public RunTest {
 protected:
  void SetUp() override {
    RunTest::SetUp();
    at::set_num_threads(1);  // products this small only wait for each other
    data_ = folder_ / "data";
    write_rows(data_, data::Split::train, 21, 1);  // 11 micro-batches of two rows, six steps of two: both ends are short
    write_rows(data_, data::Split::validation, 5, 2);
  }

  static std::vector<data::Batch> batches_of(data::Loader& loader, int64_t count) {
    std::vector<data::Batch> batches(static_cast<size_t>(count));
    loader.begin_epoch(0);
    for (auto& batch : batches) EXPECT_TRUE(loader.next(batch));
    return batches;
  }

  fs::path data_;
};

TEST_F(TrainerTest, TrainsAndLeavesEverythingThatARunHas) {
  SmallRun run(small_config(), data_, folder_ / "run");
  EXPECT_EQ(run.trainer->length().steps_per_epoch, 6);
  EXPECT_EQ(run.trainer->run(), TrainStatus::finished);
  EXPECT_EQ(run.trainer->state().step, 12);
  const auto steps = records_of(folder_ / "run", "train");
  ASSERT_EQ(steps.size(), 12u);
  EXPECT_EQ(steps.back()["tokens"], 2 * 21 * 12);
  EXPECT_EQ(steps[5]["target_tokens"].get<int64_t>() < steps[4]["target_tokens"].get<int64_t>(), true)
      << "the epoch's last step is one row";
  const auto validations = records_of(folder_ / "run", "validation");
  ASSERT_EQ(validations.size(), 4u);  // 0, 4, 8, 12
  EXPECT_EQ(validations[0]["step"], 0);
  EXPECT_EQ(validations[3]["step"], 12);
  double best = INFINITY;
  int64_t best_step = 0;
  for (size_t i = 1; i < validations.size(); ++i) {
    if (validations[i]["ce_loss"].get<double>() >= best) continue;
    best = validations[i]["ce_loss"];
    best_step = validations[i]["step"];
  }
  EXPECT_EQ(follow_pointer(folder_ / "run", "last")->filename(), "step-00000012");
  EXPECT_EQ(follow_pointer(folder_ / "run", "best")->filename(), fmt::format("step-{:08}", best_step));
  EXPECT_EQ(run.trainer->summary()["best_validation"]["step"], best_step);
  EXPECT_EQ(run.trainer->summary()["initial_validation"]["ce_loss"], validations[0]["ce_loss"]);
}

TEST_F(TrainerTest, TheLossFalls) {
  auto config = small_config();
  config.train.num_epochs = 15;
  config.eval.every_steps = 0;
  SmallRun run(config, data_, folder_ / "run");
  run.trainer->run();
  const auto steps = records_of(folder_ / "run", "train");
  EXPECT_LT(steps.back()["kl_at_1"].get<double>(), 0.7 * steps.front()["kl_at_1"].get<double>());
}

// One that the program does not know, through the registry: trained, killed and resumed as any other.
TEST_F(TrainerTest, AMixerFromOutsideIsTrainedAndResumed) {
  student::add_decay_mixer();
  const std::vector<std::string> mixers = {"decay", "slstm"};
  const auto config = small_config();
  SmallRun whole(config, data_, folder_ / "whole", "", 0, mixers);
  whole.trainer->run();
  const auto steps = records_of(folder_ / "whole", "train");
  EXPECT_LT(steps.back()["loss"].get<double>(), steps.front()["loss"].get<double>());
  SmallRun(config, data_, folder_ / "run", "", 3, mixers).trainer->run();
  SmallRun resumed(config, data_, folder_ / "run", checkpoint_at(folder_ / "run", 3)->string());
  EXPECT_EQ(dynamic_cast<const student::PaperStudent&>(*resumed.student).config().mixers, mixers);
  resumed.trainer->run();
  EXPECT_EQ(max_difference(resumed.student->parameters(), whole.student->parameters()), 0.0);
}

// How a step's rows are cut into micro-batches changes nothing: masks make the target counts of micro-batches differ.
TEST_F(TrainerTest, AccumulationIsNormalisedByTheWholeStep) {
  for (const char* method : {"delta-frobenius", "hinton", "ce-frobenius"}) {
    NamedTensors reference;
    StepResult first;
    for (const auto& [micro, accumulation] : {std::pair<int64_t, int64_t>{8, 1}, {4, 2}, {2, 4}, {1, 8}}) {
      auto config = small_config();
      config.distill.method = method;
      config.train.micro_batch_size = micro;
      config.train.gradient_accumulation_steps = accumulation;
      config.optimizer.warmup_ratio = 0.0;
      config.optimizer.max_grad_norm = 0.0;
      SmallRun run(config, data_, folder_ / fmt::format("{}-{}", method, micro));
      const auto result = run.trainer->train_step(batches_of(*run.train, accumulation));
      if (reference.empty()) {
        reference = copies_of(run.student->parameters());
        first = result;
        continue;
      }
      EXPECT_EQ(result.counts.num_targets, first.counts.num_targets);
      EXPECT_NEAR(result.loss, first.loss, 1e-5 * std::abs(first.loss)) << method;
      EXPECT_NEAR(result.grad_norm, first.grad_norm, 1e-4 * first.grad_norm) << method << " micro-batches of " << micro;
      EXPECT_NEAR(result.mean("alignment_loss"), first.mean("alignment_loss"), 1e-5 * first.mean("alignment_loss"));
    }
  }
}

// Neither does the number of threads, each of which takes a share of a micro-batch's rows.
TEST_F(TrainerTest, ThreadsShareRowsAndTheirGradientsAreOne) {
  for (const auto scope :
       {config::AlignmentScope::sequence, config::AlignmentScope::batch}) {  // a norm over the whole batch cannot be shared out
    auto config = small_config();
    config.train.micro_batch_size = 5;
    config.distill.method = "delta-frobenius";
    config.distill.alignment.scope = scope;
    config.optimizer.warmup_ratio = 0.0;
    std::optional<StepResult> first;
    NamedTensors expected;
    for (const int threads : {1, 2, 3, 5, 8}) {
      SCOPED_TRACE(fmt::format("{} {} threads", config::name_of(scope), threads));
      at::set_num_threads(threads);
      SmallRun run(config, data_, folder_ / fmt::format("{}-{}", config::name_of(scope), threads));
      for (int step = 0; step < 3; ++step) {  // also with weights that have changed
        const StepResult result = run.trainer->train_step(batches_of(*run.train, 2));
        if (step < 2) continue;
        if (!first) first = result;
        EXPECT_NEAR(result.loss, first->loss, 1e-5 * first->loss);
        EXPECT_NEAR(result.mean("kd_loss"), first->mean("kd_loss"), 1e-5 * first->mean("kd_loss"));
        EXPECT_NEAR(result.mean("alignment_loss"), first->mean("alignment_loss"), 1e-5 * first->mean("alignment_loss"));
        EXPECT_NEAR(result.grad_norm, first->grad_norm, 1e-4 * first->grad_norm);
      }
      const auto& parameters = run.student->parameters();
      if (expected.empty()) {
        for (const auto& [name, tensor] : parameters) expected.emplace_back(name, tensor.detach().clone());
      }
      for (size_t i = 0; i < expected.size(); ++i)
        EXPECT_TRUE(at::allclose(parameters[i].second, expected[i].second, 1e-3, 1e-3)) << expected[i].first;
    }
  }
  at::set_num_threads(1);
}

TEST_F(TrainerTest, EveryPartIsMeasuredForEveryMethod) {
  for (const auto& method : distill::method_names()) {
    if (method == "convert" || method == "mohawk") continue;  // they have students and stages of their own
    auto config = small_config();
    config.distill.method = method;
    const auto run_directory = folder_ / method;
    SmallRun run(config, data_, run_directory);
    EXPECT_EQ(run.trainer->run(), TrainStatus::finished) << method;
    bool has_alignment = false;
    for (const auto& record : records_of(run_directory, "train")) {
      for (const char* key : {"loss", "ce_loss", "kd_loss", "kl_at_1", "teacher_nll", "agreement", "alpha", "temperature", "beta",
                              "learning_rate", "grad_norm", "parameter_norm", "tokens_per_second"}) {
        EXPECT_TRUE(record[key].is_number()) << method << " " << key << " at step " << record["step"];
      }
      const bool is_due = (record["step"].get<int64_t>() - 1) % config.distill.alignment.every_steps == 0;
      EXPECT_TRUE(!is_due || record["alignment_loss"].is_number()) << method;
      has_alignment = has_alignment || record["alignment_loss"].is_number();
    }
    EXPECT_TRUE(has_alignment) << method;
  }
}

TEST_F(TrainerTest, TheLossIsTheWeightedSumOfItsParts) {
  auto config = small_config();
  config.distill.alpha = {.schedule = "constant", .start = 0.3};
  config.distill.temperature = {.schedule = "constant", .start = 2.0};
  config.distill.beta = {.schedule = "constant", .start = 0.2};
  for (const auto combine : {config::Combine::convex, config::Combine::additive}) {
    config.distill.combine = combine;
    SmallRun run(config, data_, folder_ / config::name_of(combine));
    const auto r = run.trainer->train_step(batches_of(*run.train, 2));
    const double ce_weight = combine == config::Combine::convex ? 0.5 : 0.7;
    EXPECT_NEAR(r.loss, ce_weight * r.mean("ce_loss") + 0.3 * r.mean("kd_loss") + 0.2 * r.mean("alignment_loss"), 1e-9);
  }
}

// The parameters after a step equal a plain gradient step of the same loss, differentiated through full logits by autograd.
TEST_F(TrainerTest, TheGradientIsThatOfTheFormula) {
  auto config = small_config();
  config.distill.alpha = {.schedule = "constant", .start = 0.3};
  config.distill.temperature = {.schedule = "constant", .start = 2.0};
  config.distill.beta = {.schedule = "constant", .start = 0.2};
  config.optimizer.max_grad_norm = 0.0;
  SmallRun run(config, data_, folder_ / "run");
  const auto batches = batches_of(*run.train, 2);
  const auto fresh =
      student::PaperStudent::create(dynamic_cast<const student::PaperStudent&>(*run.student).config(), small_teacher().embedding_weight(),
                                    small_teacher().head_weight(), config.seed, at::kCPU);
  ASSERT_EQ(max_difference(fresh->parameters(), run.student->parameters()), 0.0);
  const auto head_VD = small_teacher().head_weight();
  int64_t targets = 0, rows = 0;
  for (const auto& batch : batches) targets += batch.num_targets, rows += batch.num_rows;
  const distill::Alignment alignment(config.distill.alignment, small_teacher().num_layers(), fresh->config().num_blocks);
  for (const auto& batch : batches) {
    const auto b = nn::to_device(batch, at::kCPU);
    const auto teacher = small_teacher().forward(b.tokens_BS, b.is_start_BS, alignment.teacher_options());
    const auto student = fresh->forward(b.tokens_BS, b.is_start_BS, {});
    const auto z = at::matmul(student.last_hidden_BSD, head_VD.t()), t = at::matmul(teacher.last_hidden_BSD, head_VD.t());
    const auto ce = -at::log_softmax(z, 2).gather(2, b.targets_BS.unsqueeze(2)).squeeze(2);
    const auto p = at::log_softmax(t / 2.0, 2);
    const auto kl = (p.exp() * (p - at::log_softmax(z / 2.0, 2))).sum(2);
    const auto mask = b.mask_BS.to(at::kFloat);
    const auto head = ((0.5 * ce + 0.3 * 4.0 * kl) * mask).sum() / static_cast<double>(targets);
    // L_F by hand: mean over layers, norm of a row's unmasked elements over the square root of their number.
    const auto difference = (teacher.hidden_mean_BSD - student.final_hidden_BSD) * mask.unsqueeze(2);
    const auto elements = mask.sum(1) * static_cast<double>(small_teacher().hidden_size());
    const auto frobenius = (difference.square().sum({1, 2}).sqrt() / elements.sqrt()).sum() / static_cast<double>(rows);
    (head + 0.2 * frobenius).backward();
  }
  double square = 0.0;
  for (const auto& [name, parameter] : fresh->parameters()) square += parameter.grad().square().sum().item<double>();
  const auto result = run.trainer->train_step(batches);
  EXPECT_NEAR(result.grad_norm, std::sqrt(square), 1e-5 * std::sqrt(square));
}

TEST_F(TrainerTest, ASkippedStepChangesNothing) {
  auto config = small_config();
  config.optimizer.warmup_ratio = 0.0;
  SmallRun run(config, data_, folder_ / "run");
  auto batches = batches_of(*run.train, 2);
  run.trainer->train_step(batches);
  auto& weight = run.student->parameters()[3].second;
  const auto good = weight.detach().clone();
  {
    const at::NoGradGuard no_grad;
    Tensor(weight).fill_(std::nan(""));
  }
  const auto others = copies_of(run.student->parameters());
  const auto result = run.trainer->train_step(batches);
  EXPECT_TRUE(result.is_skipped);
  EXPECT_EQ(run.trainer->state().step, 1) << "k does not advance";
  for (size_t i = 0; i < others.size(); ++i) {
    EXPECT_TRUE(i == 3 || at::equal(others[i].second, run.student->parameters()[i].second.detach())) << others[i].first;
  }
  {
    const at::NoGradGuard no_grad;
    Tensor(weight).copy_(good);
  }
  EXPECT_FALSE(run.trainer->train_step(batches).is_skipped) << "training goes on once the cause is gone";
  EXPECT_EQ(run.trainer->state().step, 2);
}

// Whether the student of a checkpoint gives a finite loss.
bool is_finite_checkpoint(const fs::path& checkpoint, data::Loader& validation) {
  auto& teacher = small_teacher();
  teacher::LiveTeacher source(teacher);
  const auto student = student::PaperStudent::load(io::open_model(checkpoint.string()), at::kCPU, at::kFloat, teacher.embedding_weight(),
                                                   teacher.head_weight());
  return std::isfinite(eval::validate(*student, source, validation).ce_loss);
}

TEST_F(TrainerTest, StopsAfterTooManySkippedStepsWithTheCheckpointIntact) {
  auto config = small_config();
  config.train.max_skipped_steps = 3;
  config.train.num_epochs = 4;
  config.optimizer.learning_rate = 1e30;  // 0 at the first step, then the weights are lost with the second
  config.optimizer.warmup_ratio = 0.5;
  config.train.save_every_steps = 1;
  config.eval.every_steps = 0;
  SmallRun run(config, data_, folder_ / "run");
  try {
    run.trainer->run();
    FAIL() << "trained with a learning rate of 1e30";
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 1);
    EXPECT_THAT(error.what(), HasSubstr("3 in a row, stops at 3"));
    EXPECT_THAT(error.what(),
                HasSubstr("checkpoints/step-00000001, is intact. Lower optimizer.learning_rate: distil-xlstm distill --resume"));
    EXPECT_THAT(error.what(), ::testing::Not(HasSubstr("train.precision"))) << "it is fp32";
  }
  EXPECT_EQ(records_of(folder_ / "run", "skipped").size(), 3u);
  EXPECT_EQ(checked_last_checkpoint(folder_ / "run").filename(), "step-00000001");
  EXPECT_EQ(list_checkpoints(folder_ / "run").size(), 1u);
  EXPECT_TRUE(is_finite_checkpoint(checked_last_checkpoint(folder_ / "run"), *run.validation));

  // The learning rate may then be another, and nothing of the failure stays.
  config.optimizer.learning_rate = 1e-3;
  SmallRun again(config, data_, folder_ / "run", checked_last_checkpoint(folder_ / "run").string());
  EXPECT_EQ(again.trainer->run(), TrainStatus::finished);
  EXPECT_TRUE(is_finite_checkpoint(checked_last_checkpoint(folder_ / "run"), *again.validation));
}

TEST_F(TrainerTest, ARunWhoseLastWeightsAreLostFailsWithTheOnesBefore) {
  auto config = small_config();
  config.train.num_epochs = 0;
  config.train.max_steps = 2;
  config.optimizer.learning_rate = 1e30;
  config.optimizer.warmup_ratio = 0.5;
  config.train.save_every_steps = 1;
  config.eval.every_steps = 0;
  SmallRun run(config, data_, folder_ / "run");
  EXPECT_THROW(run.trainer->run(), Error);
  EXPECT_EQ(checked_last_checkpoint(folder_ / "run").filename(), "step-00000001");
}

TEST_F(TrainerTest, WithoutALossScaleTheLearningRateBacksOffAndRecovers) {
  auto config = small_config();
  config.optimizer.warmup_ratio = 0.0;
  config.optimizer.schedule = config::LearningRateSchedule::constant;
  SmallRun run(config, data_, folder_ / "run");
  auto batches = batches_of(*run.train, 2);
  auto& weight = run.student->parameters()[3].second;
  const auto good = weight.detach().clone();
  const auto set = [&](const Tensor& value) {
    const at::NoGradGuard no_grad;
    Tensor(weight).copy_(value);
  };
  set(at::full_like(good, std::nan("")));
  EXPECT_TRUE(run.trainer->train_step(batches).is_skipped);
  EXPECT_TRUE(run.trainer->train_step(batches).is_skipped);
  set(good);
  auto result = run.trainer->train_step(batches);
  EXPECT_EQ(result.learning_rate_scale, 0.25);
  EXPECT_EQ(result.learning_rate, 0.25 * config.optimizer.learning_rate);
  for (int i = 0; i < 2 * optim::LearningRateBackoff::kRecoverySteps + 1; ++i) result = run.trainer->train_step(batches);
  EXPECT_EQ(result.learning_rate, config.optimizer.learning_rate);
}

// With skipped steps alone there is no new step, but the data has gone on and the loss scale has fallen.
TEST_F(TrainerTest, SkippedStepsAloneAreSavedToo) {
  auto config = small_config();
  config.train.precision = "fp16";
  config.optimizer.initial_loss_scale = 1e9;
  config.train.max_skipped_steps = 50;
  config.eval.every_steps = 0;
  config.train.num_epochs = 10;
  std::string resume_from;
  std::vector<double> scales;
  for (int part = 0; part < 3; ++part) {
    SmallRun run(config, data_, folder_ / "run", resume_from, 2);
    EXPECT_EQ(run.trainer->run(), TrainStatus::stopped);
    resume_from = checked_last_checkpoint(folder_ / "run").string();
    scales.push_back(read_checkpoint(resume_from)["loss_scaler"]["scale"]);
  }
  EXPECT_EQ(scales, (std::vector<double>{2.5e8, 6.25e7, 1.5625e7}));
  EXPECT_EQ(records_of(folder_ / "run", "skipped").size(), 6u);
}

TEST_F(TrainerTest, Fp16BacksOffItsLossScaleAndNamesTheParameters) {
  auto config = small_config();
  config.train.precision = "fp16";
  config.optimizer.initial_loss_scale = 1e7;
  config.train.max_skipped_steps = 30;
  config.train.num_epochs = 3;
  config.eval.every_steps = 0;
  SmallRun run(config, data_, folder_ / "run");
  run.trainer->run();
  const auto skipped = records_of(folder_ / "run", "skipped");
  ASSERT_GE(skipped.size(), 2u);
  EXPECT_FALSE(skipped[0]["parameters"].empty());
  EXPECT_EQ(skipped[1]["loss_scale"].get<double>(), skipped[0]["loss_scale"].get<double>() / 2);
  EXPECT_EQ(skipped[1]["step"], skipped[0]["step"]) << "k does not advance";
  const auto steps = records_of(folder_ / "run", "train");
  ASSERT_FALSE(steps.empty());
  EXPECT_LT(steps[0]["loss_scale"].get<double>(), 1e7);
  EXPECT_LT(run.trainer->state().step, run.trainer->length().total_steps) << "the data ends although steps were skipped";
  EXPECT_EQ(follow_pointer(folder_ / "run", "last")->filename(), fmt::format("step-{:08}", run.trainer->state().step));
}

// AdamW's steps hardly depend on the gradients' scale, its moments do.
TEST_F(TrainerTest, TheOptimizerSeesGradientsWithoutTheLossScale) {
  NamedTensors expected;
  for (const double scale : {256.0, 1024.0}) {
    auto config = small_config();
    config.train.precision = "fp16";
    config.optimizer.initial_loss_scale = scale;
    config.optimizer.max_grad_norm = 0.5;  // clips: the norm is above 1
    config.eval.every_steps = 0;
    const auto directory = folder_ / fmt::format("{}", scale);
    SmallRun run(config, data_, directory, "", /*stop_after_steps=*/1);
    run.trainer->run();
    const auto record = records_of(directory, "train").at(0);
    EXPECT_EQ(record["loss_scale"].get<double>(), scale);
    const NamedTensors moments = read_tensors(*follow_pointer(directory, "last") / "optimizer.safetensors");
    double squares = 0.0;
    for (const auto& [name, tensor] : moments) {
      if (name.starts_with("exp_avg.")) squares += tensor.to(at::kDouble).square().sum().item<double>();
    }
    EXPECT_NEAR(std::sqrt(squares), 0.1 * 0.5, 1e-4) << "a tenth of the clipped gradient";
    if (expected.empty()) expected = moments;
    ASSERT_EQ(moments.size(), expected.size());
    for (size_t i = 0; i < moments.size(); ++i)
      EXPECT_TRUE(at::allclose(moments[i].second, expected[i].second, 1e-2, 1e-5)) << moments[i].first;
  }
}

// The student keeps converted weights for inference: an optimizer step must make them stale.
TEST_F(TrainerTest, ValidationInHalfPrecisionUsesTheNewWeights) {
  auto config = small_config();
  config.train.precision = "fp16";
  config.optimizer.warmup_ratio = 0.0;
  config.optimizer.initial_loss_scale = 1.0;
  SmallRun run(config, data_, folder_ / "run");
  const auto before = eval::validate(*run.student, *run.source, *run.validation);
  ASSERT_FALSE(run.trainer->train_step(batches_of(*run.train, 2)).is_skipped);
  const auto after = eval::validate(*run.student, *run.source, *run.validation);
  EXPECT_NE(before.ce_loss, after.ce_loss);
  EXPECT_EQ(before.teacher_nll, after.teacher_nll);
}

TEST_F(TrainerTest, SchedulesAdvanceByStepsAndDecayOnceAnEpoch) {
  auto config = small_config();
  config.train.num_epochs = 3;
  config.distill.alpha = {.schedule = "delta-code", .start = 0.8, .final = 0.5, .decay = 0.05};
  SmallRun run(config, data_, folder_ / "run");
  run.trainer->run();
  const auto steps = records_of(folder_ / "run", "train");
  ASSERT_EQ(steps.size(), 18u);
  EXPECT_NEAR(steps[0]["alpha"].get<double>(), 0.8, 1e-12);
  EXPECT_NEAR(steps[6]["alpha"].get<double>(), 0.76, 1e-12);
  EXPECT_NEAR(steps[12]["alpha"].get<double>(), 0.722, 1e-12);
  EXPECT_NEAR(steps[7]["alpha"].get<double>(), 0.5 + 0.26 / (1 + std::log(2.0)), 1e-12);
}

// The weights with which stage II begins are those of stage I's lowest validation loss: the last ones too, whenever validation is due.
config::RunConfig convert_config() {
  auto config = small_config();
  config.student.kind = "convert";
  config.distill.method = "convert";
  config.distill.alpha = config.distill.temperature = {.start = 1.0, .final = 1.0};
  config.distill.convert.align_fraction = 0.5;
  config.distill.convert.align_learning_rate = 2e-3;
  config.optimizer.learning_rate = 3e-4;
  return config;
}

// Mean of a figure over these steps.
double mean_of(const std::vector<json>& steps, const char* key, size_t begin, size_t end) {
  double sum = 0.0;
  for (size_t i = begin; i < end; ++i) sum += steps.at(i)[key].get<double>();
  return sum / static_cast<double>(end - begin);
}

// Alone the mixers take on their attention, without a head; then everything learns from the teacher's distribution.
TEST_F(TrainerTest, ConversionAlignsLayersAndThenDistils) {
  auto config = convert_config();
  config.train.num_epochs = 4;
  config.optimizer.schedule = config::LearningRateSchedule::constant;
  config.optimizer.warmup_ratio = 0.0;
  SmallRun run(config, data_, folder_ / "run");
  const auto before = copies_of(run.student->parameters());
  run.trainer->run();
  const auto steps = records_of(folder_ / "run", "train");
  ASSERT_EQ(steps.size(), 24);
  for (size_t i = 0; i < steps.size(); ++i) {
    const bool is_first = i < 12;
    EXPECT_EQ(steps[i]["stage"], is_first ? 1 : 2);
    EXPECT_EQ(steps[i]["layer_error"].is_number(), is_first);
    for (const char* name : {"ce_loss", "kd_loss", "teacher_nll", "agreement"}) EXPECT_EQ(steps[i][name].is_number(), !is_first) << name;
    EXPECT_EQ(steps[i]["loss"], steps[i][is_first ? "layer_error" : "kd_loss"]);
    EXPECT_DOUBLE_EQ(steps[i]["learning_rate"].get<double>(), is_first ? 2e-3 : 3e-4);
  }
  // Epochs of six steps, so that the same rows are compared.
  EXPECT_LT(mean_of(steps, "layer_error", 6, 12), 0.9 * mean_of(steps, "layer_error", 0, 6));
  EXPECT_LT(mean_of(steps, "kd_loss", 18, 24), 0.9 * mean_of(steps, "kd_loss", 12, 18));

  SmallRun first(config, data_, folder_ / "first", "", 12);
  first.trainer->run();
  const auto traits = first.student->parameter_traits();
  for (size_t i = 0; i < traits.size(); ++i) {
    const auto& [name, now] = first.student->parameters()[i];
    const bool is_trained = traits[i].group == "mixer" || traits[i].group == "attention";
    EXPECT_EQ(at::equal(now.detach(), before[i].second), !is_trained) << name;
  }
}

// First the matrices by which layers mix tokens, without a look at values; their error falls.
TEST_F(TrainerTest, MohawkFitsMatricesThenLayersThenAll) {
  auto config = convert_config();
  config.distill.method = "mohawk";
  config.distill.convert.orient_fraction = 0.5;
  config.distill.convert.orient_learning_rate = 4e-3;
  config.distill.convert.align_fraction = 0.25;
  config.train.num_epochs = 4;
  config.optimizer.schedule = config::LearningRateSchedule::constant;
  config.optimizer.warmup_ratio = 0.0;
  SmallRun run(config, data_, folder_ / "run");
  run.trainer->run();
  const auto steps = records_of(folder_ / "run", "train");
  ASSERT_EQ(steps.size(), 24);
  for (size_t i = 0; i < steps.size(); ++i) {
    const int stage = i < 12 ? 1 : i < 18 ? 2 : 3;
    EXPECT_EQ(steps[i]["stage"], stage);
    EXPECT_EQ(steps[i]["matrix_error"].is_number(), stage == 1);
    EXPECT_EQ(steps[i]["layer_error"].is_number(), stage == 2);
    EXPECT_EQ(steps[i]["loss"], steps[i][stage == 1 ? "matrix_error" : stage == 2 ? "layer_error" : "kd_loss"]);
  }
  EXPECT_LT(mean_of(steps, "matrix_error", 6, 12), 0.95 * mean_of(steps, "matrix_error", 0, 6));

  config.student.mixers = {"gated-delta"};
  try {
    check_stages(config, *student::derive_shape(config.student, teacher::teacher_shape(io::open_model("stories260K").config), 24));
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("none of this student's mixers has one"));
  }
}

// In the last stage rows start from states: a stage of its own, at its own rate.
TEST_F(TrainerTest, ConversionEndsInRowsThatStartFromStates) {
  auto config = convert_config();
  config.distill.convert.align_fraction = 0.25;
  config.distill.convert.state_passing_fraction = 0.5;
  config.distill.convert.state_passing_learning_rate = 7e-5;
  config.distill.convert.state_passing_rows = 2;
  config.train.micro_batch_size = 3;
  config.train.num_epochs = 0;
  config.train.max_steps = 8;
  config.optimizer.schedule = config::LearningRateSchedule::constant;
  config.optimizer.warmup_ratio = 0.0;
  SmallRun run(config, data_, folder_ / "run");
  run.trainer->run();
  const auto steps = records_of(folder_ / "run", "train");
  ASSERT_EQ(steps.size(), 8);
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_EQ(steps[i]["stage"], i < 2 ? 1 : i < 4 ? 2 : 3);
    EXPECT_DOUBLE_EQ(steps[i]["learning_rate"].get<double>(), i < 2 ? 2e-3 : i < 4 ? 3e-4 : 7e-5);
  }
}

// It is the teacher's from the first step on: no rounding error moves it before the whole student is trained.
TEST_F(TrainerTest, AlignmentLeavesKeptAttentionAlone) {
  for (const int64_t window : {0, 4}) {
    auto config = convert_config();
    config.student.mixers = {"mlstm", "attention"};
    config.student.attention_window = window;
    config.optimizer.warmup_ratio = 0.0;
    const auto name = fmt::format("window{}", window);
    SmallRun run(config, data_, folder_ / name, "", 3);
    const auto before = copies_of(run.student->parameters());
    run.trainer->run();
    const auto traits = run.student->parameter_traits();
    for (size_t i = 0; i < traits.size(); ++i) {
      const auto& [parameter, now] = run.student->parameters()[i];
      const bool is_kept = window == 0 && (parameter.starts_with("model.layers.1.") || parameter.starts_with("model.layers.3."));
      const bool is_trained = !is_kept && (traits[i].group == "mixer" || traits[i].group == "attention");
      EXPECT_EQ(at::equal(now.detach(), before[i].second), !is_trained) << parameter;
    }
  }
}

// The gradient of the first stage against differences of the mean that it reports.
TEST_F(TrainerTest, TheGradientOfAlignedLayersIsThatOfTheirError) {
  const auto config = convert_config();
  SmallRun run(config, data_, folder_ / "run");
  MicroBatches micro_batches(*run.source, *run.student, run.plan->objective);
  GradientSettings settings;
  settings.measured = {true};
  settings.hidden_scales = {1.0};
  settings.aligns_layers = true;
  run.train->begin_epoch(0);
  data::Batch batch;
  ASSERT_TRUE(run.train->next(batch));
  const auto error = [&] {
    const LossSums sums = micro_batches.run({batch}, settings);
    EXPECT_FALSE(sums.head.defined());
    return sums.hidden.at(0).item<double>();
  };
  (void)error();
  const auto gradients = [&] {
    std::map<std::string, Tensor> copies;
    for (const auto& [name, parameter] : run.student->parameters())
      copies[name] = parameter.grad().defined() ? parameter.grad().clone() : Tensor();
    return copies;
  }();
  EXPECT_FALSE(gradients.at("model.layers.1.mlp.down_proj.weight").defined()) << "nothing behind the mixer runs";
  for (const char* name : {"self_attn.qkv_proj.weight", "mixer.feature_k.weight", "mixer.fgate.bias", "mixer.conv.weight"}) {
    const std::string full = std::string("model.layers.1.") + name;
    const auto found = std::ranges::find(run.student->parameters(), full, &std::pair<std::string, Tensor>::first);
    ASSERT_NE(found, run.student->parameters().end());
    const Tensor& parameter = found->second;
    const Tensor &gradient = gradients.at(full), direction = gradient / gradient.norm();
    const auto moved = [&](double by) {
      {
        const at::NoGradGuard no_grad;
        Tensor(parameter).add_(direction, by);
      }
      const double value = error();
      const at::NoGradGuard no_grad;
      Tensor(parameter).add_(direction, -by);
      return value;
    };
    const double step = 1e-2 / std::max(1.0, gradient.norm().item<double>()), difference = (moved(step) - moved(-step)) / (2 * step);
    EXPECT_NEAR(difference, gradient.norm().item<double>(), 2e-2 * gradient.norm().item<double>()) << name;
  }
}

// Its own setting is named, and may be another when the run goes on.
TEST_F(TrainerTest, AFailedAlignmentNamesItsLearningRate) {
  auto config = convert_config();
  config.distill.convert.align_learning_rate = 1e30;
  config.train.max_skipped_steps = 2;
  config.train.save_every_steps = 1;
  SmallRun run(config, data_, folder_ / "run");
  try {
    run.trainer->run();
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("Lower distill.convert.align_learning_rate"));
    EXPECT_THAT(error.what(), ::testing::HasSubstr("--align-learning-rate 2.5e+29"));
  }
  EXPECT_TRUE(config::find_setting("distill.convert.align_learning_rate")->may_change(/*has_failed=*/true));
}

TEST_F(TrainerTest, OnlyLayersOfTheTeachersCanBeAligned) {
  auto config = convert_config();
  config.student.kind = "paper";
  EXPECT_THROW(SmallRun(config, data_, folder_ / "run"), ConfigError);
}

TEST_F(TrainerTest, StageTwoBeginsFromTheBestOfStageOne) {
  for (const double learning_rate : {0.3, 1e-3}) {  // so large that the newest is hardly ever the best; so small that it is
    SCOPED_TRACE(learning_rate);
    auto config = small_config();
    config.distill.method = "annealing-kd";
    config.distill.boundary = config::Boundary::slice;
    config.distill.stage1_fraction = 0.5;
    config.eval.every_steps = learning_rate > 0.1 ? 2 : 5;
    config.optimizer.learning_rate = learning_rate;
    config.optimizer.schedule = config::LearningRateSchedule::constant;
    config.train.num_epochs = 2;
    config.train.keep_checkpoints = 20;
    config.train.save_every_steps = 1;
    const auto directory = folder_ / fmt::format("run{}", learning_rate);
    {
      SmallRun run(config, data_, directory);
      run.trainer->run();
    }
    std::vector<int> stages;
    for (const auto& record : records_of(directory, "train")) stages.push_back(record["stage"]);
    EXPECT_EQ(stages, (std::vector<int>{1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2}));
    double best = INFINITY;
    int64_t best_step = 0;
    bool validates_at_the_end = false;
    for (const auto& record : records_of(directory, "validation")) {
      const int64_t step = record["step"];
      validates_at_the_end = validates_at_the_end || step == 6;
      if (step == 0 || step > 6 || record["ce_loss"].get<double>() >= best) continue;
      best = record["ce_loss"];
      best_step = step;
    }
    EXPECT_TRUE(validates_at_the_end);
    const auto from = checkpoint_at(directory, best_step);
    ASSERT_TRUE(from);
    const auto chosen = student::PaperStudent::load(io::open_model(from->string()), at::kCPU, at::kFloat,
                                                    small_teacher().embedding_weight(), small_teacher().head_weight());
    // Adam's first step moves every weight by at most the learning rate, and weight decay little.
    const auto after = student::PaperStudent::load(io::open_model(checkpoint_at(directory, 7)->string()), at::kCPU, at::kFloat,
                                                   small_teacher().embedding_weight(), small_teacher().head_weight());
    EXPECT_LE(max_difference(chosen->parameters(), after->parameters()), 1.1 * learning_rate) << "from step " << best_step;
  }
}

// ---- Resuming: the same bits as never stopping.

std::map<std::string, std::string> final_files(const fs::path& run) {
  const auto last = *follow_pointer(run, "last");
  return {{"model", read_file(last / "model.safetensors")}, {"optimizer", read_file(last / "optimizer.safetensors")}};
}

void expect_same_metrics(const fs::path& a, const fs::path& b) {
  auto first = read_metrics(a), second = read_metrics(b);
  ASSERT_EQ(first.size(), second.size());
  for (size_t i = 0; i < first.size(); ++i) {
    for (auto* record : {&first[i], &second[i]}) {
      record->erase("tokens_per_second");
      record->erase("seconds");
    }
    EXPECT_EQ(first[i], second[i]);
  }
}

struct ResumeCase {
  std::string name;
  std::function<void(config::RunConfig&)> change;
};

class ResumeTest : public TrainerTest, public ::testing::WithParamInterface<int> {};

const std::vector<ResumeCase>& resume_cases() {
  static const std::vector<ResumeCase> cases = {
      {"delta-frobenius", [](auto&) {}},
      {"delta-code", [](auto& c) { c.distill.alpha.schedule = c.distill.temperature.schedule = "delta-code"; }},
      {"annealing-kd", [](auto& c) { c.distill.method = "annealing-kd"; }},
      {"teacher-annealing", [](auto& c) { c.distill.method = "teacher-annealing"; }},
      {"fp16", [](auto& c) { c.train.precision = "fp16", c.optimizer.initial_loss_scale = 3e5, c.train.max_skipped_steps = 50; }},
      {"ratio, checkpointing, vanilla layout",
       [](auto& c) {
         c.distill.alignment.kind = config::AlignmentKind::ratio, c.train.checkpointing = config::Checkpointing::blocks,
         c.student.slstm_layout = config::SlstmLayout::vanilla;
       }},
      {"convert", [](auto& c) { c = convert_config(); }},
      {"mohawk", [](auto& c) { c = convert_config(), c.distill.method = "mohawk", c.distill.convert.orient_fraction = 0.3; }},
      {"convert, states passed on",
       [](auto& c) { c = convert_config(), c.distill.convert.align_fraction = 0.2, c.distill.convert.state_passing_fraction = 0.5; }},
      {"convert, every mixer",
       [](auto& c) {
         c = convert_config();
         c.student.mixers = {"slstm", "attention", "mlstm"}, c.student.attention_window = 5, c.student.attention_sinks = 1;
         c.train.checkpointing = config::Checkpointing::blocks;
       }},
      {"convert, xlstm-large", [](auto& c) { c = convert_config(), c.student.mixers = {"xlstm-large"}; }},
  };
  return cases;
}

TEST_P(ResumeTest, StoppedAndResumedEqualsUninterrupted) {
  auto config = small_config();
  const auto& tested = resume_cases()[static_cast<size_t>(GetParam())];
  SCOPED_TRACE(tested.name);
  tested.change(config);
  {
    SmallRun whole(config, data_, folder_ / "whole");
    whole.trainer->run();
  }
  // Stops after 1, 4 (mid-epoch), 6 (an epoch's end) and so on steps of this process.
  const auto parts = folder_ / "parts";
  std::string resume_from;
  int64_t stops = 0;
  for (const int64_t steps : {1, 4, 1, 100}) {
    SmallRun part(config, data_, parts, resume_from, steps);
    if (part.trainer->run() == TrainStatus::finished) break;
    ++stops;
    resume_from = checked_last_checkpoint(parts).string();
  }
  EXPECT_EQ(stops, 3);
  const auto expected = final_files(folder_ / "whole"), actual = final_files(parts);
  for (const auto& [name, bytes] : expected) EXPECT_TRUE(actual.at(name) == bytes) << name << " differs";
  expect_same_metrics(folder_ / "whole", parts);
}

INSTANTIATE_TEST_SUITE_P(Cases, ResumeTest, ::testing::Range(0, static_cast<int>(resume_cases().size())));

// A kill between the checkpoint and the pointer to the best, or after a checkpoint and before `last`: resuming puts both right.
TEST_F(TrainerTest, ResumingRepairsWhatAKillLeft) {
  const auto directory = folder_ / "run";
  auto config = small_config();
  config.train.save_every_steps = 1;
  config.train.keep_checkpoints = 20;
  config.eval.every_steps = 1;
  config.optimizer.learning_rate = 1e-3;  // every validation is better than the one before
  {
    SmallRun run(config, data_, directory, "", 4);
    EXPECT_EQ(run.trainer->run(), TrainStatus::stopped);
  }
  ASSERT_EQ(follow_pointer(directory, "best")->filename(), "step-00000004");
  point_to(directory, "best", *checkpoint_at(directory, 3));
  {
    SmallRun run(config, data_, directory, checked_last_checkpoint(directory).string(), 1);
    EXPECT_EQ(follow_pointer(directory, "best")->filename(), "step-00000004");
  }
  // Going on from an earlier one: what came after it is no part of this run, and least of all its best.
  point_to(directory, "last", *checkpoint_at(directory, 2));
  {
    SmallRun run(config, data_, directory, checked_last_checkpoint(directory).string(), 1);
    EXPECT_EQ(follow_pointer(directory, "best")->filename(), "step-00000002");
    EXPECT_EQ(list_checkpoints(directory).size(), 2u);
  }
  SmallRun run(config, data_, directory, checked_last_checkpoint(directory).string());
  EXPECT_EQ(run.trainer->run(), TrainStatus::finished);
  EXPECT_EQ(follow_pointer(directory, "last")->filename(), "step-00000012");
}

// The data may end before total_steps, since steps were skipped; the validation there may be the best of all.
TEST_F(TrainerTest, TheValidationAtTheDatasEndIsSaved) {
  auto config = small_config();
  config.train.precision = "fp16";
  config.optimizer.initial_loss_scale = 1e7;
  config.train.max_skipped_steps = 30;
  config.train.num_epochs = 3;
  config.train.save_every_steps = 1;
  config.eval.every_steps = 1000;
  SmallRun run(config, data_, folder_ / "run");
  EXPECT_EQ(run.trainer->run(), TrainStatus::finished);
  ASSERT_LT(run.trainer->state().step, run.trainer->length().total_steps);
  const auto name = fmt::format("step-{:08}", run.trainer->state().step);
  EXPECT_EQ(follow_pointer(folder_ / "run", "best")->filename(), name);
  EXPECT_EQ(read_checkpoint(*follow_pointer(folder_ / "run", "last"))["validated_step"], run.trainer->state().step);
}

// A signal during a validation is not kept waiting; the resumed run makes up for it.
TEST_F(TrainerTest, ASignalEndsAValidation) {
  auto config = small_config();
  config.train.max_steps = 4;
  config.train.num_epochs = 0;
  const auto directory = folder_ / "run";
  {
    const SignalGuard guard;
    ::raise(SIGTERM);
    SmallRun run(config, data_, directory);
    EXPECT_EQ(run.trainer->run(), TrainStatus::stopped);
    EXPECT_TRUE(records_of(directory, "validation").empty());
  }
  const auto last = checked_last_checkpoint(directory);
  EXPECT_EQ(last.filename(), "step-00000000");
  SmallRun run(config, data_, directory, last.string());
  EXPECT_EQ(run.trainer->run(), TrainStatus::finished);
  EXPECT_EQ(records_of(directory, "validation").size(), 2u);
}

TEST_F(TrainerTest, RefusesACheckpointOfAnotherRun) {
  {
    SmallRun run(small_config(), data_, folder_ / "run");
    run.trainer->run();
  }
  const auto last = checked_last_checkpoint(folder_ / "run").string();
  auto longer = small_config();
  longer.train.num_epochs = 3;
  EXPECT_THROW(SmallRun(longer, data_, folder_ / "run", last), ConfigError);
  auto reseeded = small_config();
  reseeded.seed = 6;
  EXPECT_THROW(SmallRun(reseeded, data_, folder_ / "run", last), DataError);
  auto other = small_config();
  other.distill.method = "hinton";
  EXPECT_THROW(SmallRun(other, data_, folder_ / "run", last), DataError);
}

}  // namespace
}  // namespace distil_xlstm::train
