#include "distill/method.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "config/settings.h"
#include "distill/schedule_table.h"

namespace distil_xlstm::distill {
namespace {

config::DistillSettings settings_of(const std::string& method) {
  config::DistillSettings settings;
  settings.method = method;
  return settings;
}

StepPlan plan_at(const config::DistillSettings& settings, int64_t step, int64_t total_steps = 100, int64_t epoch = 0,
                 int64_t num_epochs = 1) {
  const auto method = make_method(settings, total_steps, num_epochs);
  return method->plan(in_its_stage(*method, {step, total_steps, epoch, num_epochs}));
}

std::string message_of(const config::DistillSettings& settings, int64_t total_steps = 100, int64_t num_epochs = 4) {
  try {
    (void)make_method(settings, total_steps, num_epochs);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

const double kHalf = 1.0 / (1.0 + std::log(3.0));  // what is left of the range at t = 2

TEST(Method, NamesInOrder) {
  EXPECT_EQ(method_names(), (std::vector<std::string>{"ce", "hinton", "teacher-annealing", "annealing-kd", "delta", "delta-frobenius",
                                                      "hinton-frobenius", "ce-frobenius", "convert", "mohawk"}));
  EXPECT_EQ(config::find_setting("distill.method")->names, method_names());
  for (const auto& name : method_names()) {
    const auto method = make_method(settings_of(name), 100, 4);
    EXPECT_EQ(method->name(), name);
  }
}

// Weights of CE, KD, MSE, mixed labels, alignment.
void expect_weights(const StepPlan& plan, double ce, double kd, double mse, double label, double alignment) {
  EXPECT_NEAR(plan.head.ce_weight, ce, 1e-12);
  EXPECT_NEAR(plan.head.kd_weight, kd, 1e-12);
  EXPECT_NEAR(plan.head.mse_weight, mse, 1e-12);
  EXPECT_NEAR(plan.head.label_weight, label, 1e-12);
  EXPECT_NEAR(plan.hidden_weights.at(0), alignment, 1e-12);
}

TEST(Method, WeightsAtStepTwo) {
  const double alpha = 0.5 + 0.3 * kHalf, temperature = 1.0 + kHalf;
  expect_weights(plan_at(settings_of("ce"), 2), 1, 0, 0, 0, 0);
  expect_weights(plan_at(settings_of("hinton"), 2), 0.2, 0.8, 0, 0, 0);
  expect_weights(plan_at(settings_of("delta"), 2), 1 - alpha, alpha, 0, 0, 0);
  expect_weights(plan_at(settings_of("delta-frobenius"), 2), 0.9 - alpha, alpha, 0, 0, 0.1);
  expect_weights(plan_at(settings_of("hinton-frobenius"), 2), 0.1, 0.8, 0, 0, 0.1);
  expect_weights(plan_at(settings_of("ce-frobenius"), 2), 0.9, 0, 0, 0, 0.1);
  expect_weights(plan_at(settings_of("teacher-annealing"), 2), 0, 0, 0, 1, 0);
  EXPECT_EQ(plan_at(settings_of("hinton"), 2).temperature, 2.0);
  EXPECT_EQ(plan_at(settings_of("hinton-frobenius"), 2).head.temperature, 2.0);
  // The KL is measured at the T of the step whatever its weight, so that runs can be compared.
  for (const char* name : {"ce", "delta", "delta-frobenius", "ce-frobenius", "teacher-annealing"}) {
    EXPECT_NEAR(plan_at(settings_of(name), 2).head.temperature, temperature, 1e-12) << name;
  }
  EXPECT_EQ(plan_at(settings_of("ce"), 2).alpha, 0.0);
  EXPECT_NEAR(plan_at(settings_of("delta"), 2).alpha, alpha, 1e-12);
}

TEST(Method, AdditiveKeepsTheWholeOfTheTwo) {
  auto settings = settings_of("delta-frobenius");
  settings.combine = config::Combine::additive;
  expect_weights(plan_at(settings, 0), 0.2, 0.8, 0, 0, 0.1);
  settings.beta.start = 3.0;
  expect_weights(plan_at(settings, 0), 0.2, 0.8, 0, 0, 3.0);
}

TEST(Method, BetaMayRise) {
  auto settings = settings_of("delta-frobenius");
  settings.beta = {.schedule = "delta-paper", .start = 0.1, .final = 0.2};
  EXPECT_NEAR(plan_at(settings, 2).beta, 0.2 - 0.1 * kHalf, 1e-12);
}

TEST(Method, TeacherAnnealingMovesFromTeacherToLabels) {
  const auto settings = settings_of("teacher-annealing");
  EXPECT_EQ(plan_at(settings, 0, 101).head.label_mix, 0.0);
  EXPECT_EQ(plan_at(settings, 0, 101).alpha, 1.0);
  EXPECT_NEAR(plan_at(settings, 25, 101).head.label_mix, 0.25, 1e-12);
  EXPECT_EQ(plan_at(settings, 100, 101).head.label_mix, 1.0);
}

TEST(Method, AnnealingKdByEpochCountsDownToOne) {
  auto settings = settings_of("annealing-kd");
  settings.stage1_fraction = 10.0 / 14.0;
  const auto method = make_method(settings, 1400, 14);
  for (int64_t epoch = 0; epoch < 10; ++epoch) {
    const StepContext context = in_its_stage(*method, {epoch * 100, 1400, epoch, 14});
    const StepPlan plan = method->plan(context);
    EXPECT_EQ(context.stage, 0U);
    EXPECT_NEAR(plan.temperature, 10.0 - static_cast<double>(epoch), 1e-12);
    EXPECT_NEAR(plan.head.mse_scale, 1.0 - (plan.temperature - 1.0) / 10.0, 1e-12);
    expect_weights(plan, 0, 0, 1, 0, 0);
  }
  const StepContext begun = in_its_stage(*method, {1000, 1400, 10, 14});
  const StepPlan second = method->plan(begun);
  EXPECT_EQ(begun.stage, 1U);
  EXPECT_EQ(second.temperature, 1.0);
  expect_weights(second, 1, 0, 0, 0, 0);
}

TEST(Method, AnnealingKdSingleStageOneEpochRegressesOnTheLogitsThemselves) {
  auto settings = settings_of("annealing-kd");
  settings.stage1_fraction = 0.5;
  EXPECT_EQ(plan_at(settings, 0, 10, 0, 2).head.mse_scale, 1.0);
}

TEST(Method, AnnealingKdBySliceHasEqualSlices) {
  auto settings = settings_of("annealing-kd");
  settings.boundary = config::Boundary::slice;
  settings.temperature_max = 4.0;
  settings.stage1_fraction = 0.8;
  const auto method = make_method(settings, 50, 1);  // 40 steps of stage I in four slices
  std::map<double, int> seen;
  for (int64_t step = 0; step < 50; ++step) {
    const StepContext context = in_its_stage(*method, {step, 50, 0, 1});
    const StepPlan plan = method->plan(context);
    EXPECT_EQ(context.stage, step < 40 ? 0U : 1U);
    if (context.stage == 0) ++seen[plan.temperature];
  }
  EXPECT_EQ(seen, (std::map<double, int>{{1.0, 10}, {2.0, 10}, {3.0, 10}, {4.0, 10}}));
}

TEST(Method, RefusesBeforeAnythingLoads) {
  auto settings = settings_of("delta-frobenus");
  EXPECT_EQ(message_of(settings),
            "distill.method = \"delta-frobenus\": allowed are ce, hinton, teacher-annealing, annealing-kd, delta, delta-frobenius, "
            "hinton-frobenius, ce-frobenius, convert, mohawk (did you mean 'delta-frobenius'?)");
  const auto expect_refusal = [](auto change, const std::string& part, const std::string& method = "delta-frobenius") {
    auto changed = settings_of(method);
    change(changed);
    EXPECT_NE(message_of(changed).find(part), std::string::npos) << message_of(changed);
  };
  expect_refusal([](auto& s) { s.beta.start = 0.3; }, "add up to 1.1");
  expect_refusal([](auto& s) { s.beta.start = 0.3; }, "add up to 1.1", "hinton-frobenius");
  expect_refusal([](auto& s) { s.beta = {.schedule = "linear", .start = 0.0, .final = 0.6}; }, "at step 77 add up to 1.001");
  expect_refusal([](auto& s) { s.temperature.schedule = "cosin"; }, "did you mean 'cosine'");
  settings = settings_of("annealing-kd");
  EXPECT_NE(message_of(settings, 100, 1).find("needs at least 2 epochs"), std::string::npos);
  settings.boundary = config::Boundary::slice;
  EXPECT_EQ(message_of(settings, 100, 1), "accepted");
  EXPECT_NE(message_of(settings, 1, 1).find("needs at least 2 optimizer steps"), std::string::npos);
}

TEST(Method, SumsOfExactlyOneAndUnusedSumsAreAccepted) {
  auto settings = settings_of("hinton-frobenius");
  settings.alpha.start = 0.7;
  settings.beta.start = 0.3;
  EXPECT_EQ(message_of(settings), "accepted");
  EXPECT_NEAR(plan_at(settings, 0).head.ce_weight, 0.0, 1e-15);
  settings.beta.start = 0.9;
  EXPECT_NE(message_of(settings), "accepted");
  for (const char* name : {"hinton", "delta", "ce-frobenius"}) {
    settings.method = name;
    EXPECT_EQ(message_of(settings), "accepted") << name;
  }
  settings.method = "hinton-frobenius";
  settings.combine = config::Combine::additive;
  EXPECT_EQ(message_of(settings), "accepted");
}

// Schedules are looked at where the run goes and no further, with epochs as long as they are.
TEST(Method, SumsAreCheckedOverTheRunsOwnSteps) {
  const auto refusal = [](const config::DistillSettings& settings, int64_t steps, int64_t epochs, int64_t steps_per_epoch) -> std::string {
    try {
      (void)make_method(settings, steps, epochs, steps_per_epoch);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  const auto early_refusal = [](const config::DistillSettings& settings, int64_t max_steps) -> std::string {
    try {
      check_before_length(settings, max_steps);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  };
  auto settings = settings_of("delta-frobenius");
  settings.alpha = {.schedule = "delta-paper", .start = 0.3, .final = 0.6, .decay = 0.05};
  settings.beta = {.schedule = "constant", .start = 0.41};
  EXPECT_EQ(refusal(settings, 10, 1, 10), "accepted");
  EXPECT_EQ(early_refusal(settings, 10), "accepted");
  EXPECT_NE(refusal(settings, 1 << 20, 1 << 10, 1 << 10), "accepted") << "alpha's start moves at each epoch's end";

  settings.alpha = {.schedule = "constant", .start = 0.6};
  settings.beta = {.schedule = "linear", .start = 0.0, .final = 0.45};
  EXPECT_NE(early_refusal(settings, 10).find("at step 9 add up to 1.05"), std::string::npos) << early_refusal(settings, 10);
  EXPECT_EQ(early_refusal(settings, 0), "accepted") << "the length is not known yet";
  EXPECT_NE(refusal(settings, 10, 1, 10), "accepted");

  // Three steps an epoch, of which the run takes four: at step 3 alpha has begun anew nearer to its end.
  settings.alpha = {.schedule = "delta-code", .start = 0.2, .final = 0.9, .decay = 0.5, .decay_mode = config::DecayMode::subtract};
  settings.beta = {.schedule = "constant", .start = 0.31};
  EXPECT_EQ(refusal(settings, 3, 1, 3), "accepted");
  EXPECT_NE(refusal(settings, 4, 2, 3).find("at step 3"), std::string::npos) << refusal(settings, 4, 2, 3);
}

TEST(Method, ConvertAlignsLayersAndThenDistils) {
  auto settings = settings_of("convert");
  settings.convert = {
      .align_fraction = 0.25, .align_learning_rate = 0.3, .align_attention_rate = 0.0, .attention_rate = 0.5, .body_rate = 0.1};
  settings.alpha = {.schedule = "linear", .start = 1.0, .final = 0.0};
  const auto method = make_method(settings, 40, 1);
  const auto stages = method->stages();
  ASSERT_EQ(stages.size(), 2);
  EXPECT_TRUE(stages[0].aligns_layers);
  EXPECT_EQ(stages[0].until_step, 10);
  EXPECT_EQ(stages[0].rates, (std::map<std::string, double>{{"mixer", 1.0}}));
  EXPECT_EQ(stages[0].learning_rate, 0.3);
  EXPECT_EQ(stages[0].end_step, 10);
  EXPECT_FALSE(stages[1].aligns_layers);
  EXPECT_EQ(stages[1].rates, (std::map<std::string, double>{{"mixer", 1.0}, {"attention", 0.5}, {"feed_forward", 0.1}, {"norm", 0.1}}));
  EXPECT_EQ(stages[1].learning_rate, 0.0) << "the optimizer's";
  EXPECT_EQ(stages[1].begin_step, 10);
  EXPECT_EQ(stages[1].end_step, 40);
  expect_weights(method->plan({.step = 9, .total_steps = 40}), 0, 0, 0, 0, 1);
  expect_weights(method->plan({.step = 10, .total_steps = 40, .stage = 1}), 0, 1, 0, 0, 0);
  expect_weights(method->plan({.step = 39, .total_steps = 40, .stage = 1}), 1, 0, 0, 0, 0);

  settings.convert.align_fraction = 0.0;
  EXPECT_EQ(make_method(settings, 40, 1)->stages().size(), 1);
  settings.convert.align_fraction = 0.999;
  EXPECT_EQ(make_method(settings, 40, 1)->stages()[0].until_step, 39) << "a step is left for the second stage";
  EXPECT_THROW((void)make_method(settings, 1, 1), ConfigError);
  // Epochs that end before the second stage, or where it begins, decay no start of its schedules.
  settings.convert.align_fraction = 0.5;
  settings.alpha = {.schedule = "delta-paper", .start = 0.8, .final = 0.5, .decay = 0.2};
  const auto annealed = make_method(settings, 40, 4);
  for (const int64_t end : {10, 20}) annealed->end_epoch(end);
  EXPECT_DOUBLE_EQ(annealed->plan({.step = 20, .total_steps = 40, .stage = 1}).alpha, 0.8);
  const double before = annealed->plan({.step = 30, .total_steps = 40, .stage = 1}).alpha;
  annealed->end_epoch(30);
  EXPECT_LT(annealed->plan({.step = 30, .total_steps = 40, .stage = 1}).alpha, before);
  EXPECT_EQ(method_terms("convert").hidden, (std::vector<std::string>{"layer_error"}));
}

TEST(Method, ConvertEndsInRowsThatStartFromStates) {
  auto settings = settings_of("convert");
  settings.convert = {.align_fraction = 0.25,
                      .body_rate = 0.1,
                      .state_passing_fraction = 0.2,
                      .state_passing_learning_rate = 0.01,
                      .state_passing_rows = 3};
  settings.alpha = {.schedule = "linear", .start = 1.0, .final = 0.0};
  const auto method = make_method(settings, 40, 1);
  const auto stages = method->stages();
  ASSERT_EQ(stages.size(), 3);
  EXPECT_EQ(stages[1].until_step, 32);
  EXPECT_EQ(stages[1].begin_step, 10);
  EXPECT_EQ(stages[1].end_step, 32);
  EXPECT_EQ(stages[1].rows_before, 0);
  EXPECT_EQ(stages[2].rows_before, 3);
  EXPECT_EQ(stages[2].rates, stages[1].rates);
  EXPECT_EQ(stages[2].learning_rate, 0.01);
  EXPECT_EQ(stages[2].learning_rate_key, "distill.convert.state_passing_learning_rate");
  EXPECT_EQ(stages[2].begin_step, 32);
  EXPECT_EQ(stages[2].end_step, 40);
  EXPECT_EQ(stages[2].until_step, 0);
  expect_weights(method->plan({.step = 39, .total_steps = 40, .stage = 2}), 1, 0, 0, 0, 0);  // one schedule over both

  // A step is left for each stage.
  settings.convert.align_fraction = settings.convert.state_passing_fraction = 0.49;
  const auto shortest = make_method(settings, 3, 1)->stages();
  EXPECT_EQ(shortest[0].until_step, 1);
  EXPECT_EQ(shortest[1].until_step, 2);
  EXPECT_THROW((void)make_method(settings, 2, 1), ConfigError);
  settings.convert.align_fraction = 0.6;
  settings.convert.state_passing_fraction = 0.4;
  EXPECT_THROW(check_before_length(settings, 0), ConfigError) << "nothing would be left between them";
  settings.convert.align_fraction = 0.0;
  EXPECT_EQ(make_method(settings, 10, 1)->stages().size(), 2);
}

TEST(Method, MohawkOrientsMatricesFirst) {
  auto settings = settings_of("mohawk");
  settings.convert = {.orient_fraction = 0.1, .orient_learning_rate = 0.2, .align_fraction = 0.25, .align_learning_rate = 0.3};
  settings.alpha = {.schedule = "linear", .start = 1.0, .final = 0.0};
  const auto method = make_method(settings, 40, 1);
  const auto stages = method->stages();
  ASSERT_EQ(stages.size(), 3);
  EXPECT_TRUE(stages[0].aligns_layers && stages[0].compares_matrices);
  EXPECT_EQ(stages[0].until_step, 4);
  EXPECT_EQ(stages[0].learning_rate, 0.2);
  EXPECT_TRUE(stages[1].aligns_layers && !stages[1].compares_matrices);
  EXPECT_EQ(stages[1].begin_step, 4);
  EXPECT_EQ(stages[1].until_step, 14);
  EXPECT_EQ(stages[2].begin_step, 14);
  EXPECT_EQ(stages[2].end_step, 40);
  const auto hidden_weights = [&](int64_t step) { return method->plan({.step = step, .total_steps = 40}).hidden_weights; };
  EXPECT_EQ(method_terms("mohawk").hidden, (std::vector<std::string>{"layer_error", "matrix_error"}));
  EXPECT_EQ(hidden_weights(3), (std::vector<double>{0.0, 1.0}));
  EXPECT_EQ(hidden_weights(4), (std::vector<double>{1.0, 0.0}));
  EXPECT_EQ(hidden_weights(14), (std::vector<double>{0.0, 0.0}));
  EXPECT_EQ(method->plan({.step = 14, .total_steps = 40, .stage = 2}).alpha, 1.0);
  EXPECT_EQ(make_method(settings_of("convert"), 40, 1)->stages().size(), 2) << "its settings are of this method alone";
}

TEST(Method, StatesWhatItIgnores) {
  const auto has = [](const std::string& method, const std::string& key) { return std::ranges::count(ignored_keys(method), key) == 1; };
  EXPECT_TRUE(has("ce", "alpha"));
  EXPECT_TRUE(has("ce", "beta"));
  EXPECT_TRUE(has("hinton", "alpha.schedule"));
  EXPECT_FALSE(has("delta", "alpha"));
  EXPECT_TRUE(has("delta", "beta"));
  EXPECT_FALSE(has("delta-frobenius", "beta"));
  EXPECT_TRUE(has("annealing-kd", "temperature"));
  EXPECT_FALSE(has("annealing-kd", "temperature_max"));
  EXPECT_TRUE(has("convert", "alignment"));
  EXPECT_TRUE(has("delta", "convert"));
  EXPECT_FALSE(has("convert", "convert"));
  EXPECT_THROW(ignored_keys("nothing"), ConfigError);
}

TEST(Method, RestoreContinuesInMidEpoch) {
  for (const auto& name : method_names()) {
    auto settings = settings_of(name);
    settings.alpha.schedule = settings.temperature.schedule = "delta-code";
    const auto original = make_method(settings, 200, 4);
    original->end_epoch(50);
    const auto resumed = make_method(settings, 200, 4);
    resumed->restore(json::parse(original->state().dump()));
    for (int64_t step = 70; step < 100; ++step) {
      const StepPlan a = original->plan(in_its_stage(*original, {step, 200, 1, 4})),
                     b = resumed->plan(in_its_stage(*resumed, {step, 200, 1, 4}));
      ASSERT_EQ(a.alpha, b.alpha) << name;
      ASSERT_EQ(a.temperature, b.temperature) << name;
      ASSERT_EQ(a.beta, b.beta) << name;
    }
    EXPECT_EQ(original->state(), resumed->state());
    const auto other = make_method(settings_of(name == "ce" ? "delta" : "ce"), 200, 4);
    EXPECT_THROW(other->restore(original->state()), DataError);
  }
}

TEST(ScheduleTable, ShowsTheKnownStepsAndEpochEnds) {
  const auto rows = schedule_table(settings_of("delta"), 2500, 500);
  std::vector<int64_t> steps;
  for (const auto& row : rows) steps.push_back(row.step);
  EXPECT_EQ(steps, (std::vector<int64_t>{0, 1, 2, 10, 100, 499, 500, 999, 1000, 1499, 1500, 1999, 2000, 2499}));
  EXPECT_NEAR(rows[2].plan.alpha, 0.643, 5e-4);
  EXPECT_EQ(rows[6].note, "epoch 2 begins");
  EXPECT_NEAR(rows[6].plan.alpha, 0.5 + 0.26 / (1 + std::log(501.0)), 1e-12);
  EXPECT_EQ(rows.back().note, "last step");
  EXPECT_EQ(rows.back().epoch, 4);
}

TEST(ScheduleTable, StaysShortForManyEpochsAndTakesOneStep) {
  EXPECT_LE(schedule_table(settings_of("delta-frobenius"), 100000, 100).size(), 35U);
  EXPECT_EQ(schedule_table(settings_of("delta-frobenius"), 1, 1).size(), 1U);
  EXPECT_THROW(schedule_table(settings_of("delta-frobenius"), 0, 1), ConfigError);
  EXPECT_THROW(schedule_table(settings_of("delta-frobenius"), 10, 0), ConfigError);
}

}  // namespace
}  // namespace distil_xlstm::distill
