#include "distill/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "config/toml.h"
#include "distill/method.h"

namespace distil_xlstm::distill {
namespace {

using config::ScheduleSettings;

const ScheduleSettings kAlpha{.schedule = "delta-paper", .start = 0.8, .final = 0.5};
const ScheduleSettings kTemperature{.schedule = "delta-paper", .start = 2.0, .final = 1.0};

TEST(Schedule, DeltaHasThePublishedValues) {
  const Schedule alpha(kAlpha, 10000, "distill.alpha"), temperature(kTemperature, 10000, "distill.temperature");
  const int64_t steps[] = {0, 1, 2, 10, 100, 1000};
  const double alphas[] = {0.800, 0.677, 0.643, 0.588, 0.553, 0.538};
  const double temperatures[] = {2.000, 1.591, 1.477, 1.294, 1.178, 1.126};
  for (int i = 0; i < 6; ++i) {
    EXPECT_NEAR(alpha.value(steps[i]), alphas[i], 5e-4) << steps[i];
    EXPECT_NEAR(temperature.value(steps[i]), temperatures[i], 5e-4) << steps[i];
  }
  EXPECT_EQ(alpha.value(0), 0.8);
  EXPECT_DOUBLE_EQ(alpha.value(6), 0.5 + 0.3 / (1.0 + std::log(7.0)));
  EXPECT_GT(alpha.value(int64_t{1} << 50), 0.5);  // a little guidance remains
}

TEST(Schedule, EpochStartsOfTenEpochs) {
  auto settings = kAlpha;
  settings.schedule = "delta-code";
  Schedule alpha(settings, 1000, "distill.alpha");
  const double starts[] = {.800, .760, .722, .686, .652, .619, .588, .559, .531, .504};
  for (int epoch = 0; epoch < 10; ++epoch) {
    EXPECT_NEAR(alpha.value(epoch * 100), starts[epoch], 5e-4) << epoch;
    EXPECT_NEAR(alpha.value(epoch * 100), 0.8 * std::pow(0.95, epoch), 1e-12);
    EXPECT_NEAR(alpha.value(epoch * 100 + 1), 0.5 + (0.8 * std::pow(0.95, epoch) - 0.5) / (1 + std::log(2.0)), 1e-12);
    alpha.end_epoch((epoch + 1) * 100);
  }
  EXPECT_EQ(alpha.value(1000), 0.5);  // 0.479 would be past final
}

TEST(Schedule, PaperKeepsCountingStepsOverEpochs) {
  Schedule alpha(kAlpha, 1000, "distill.alpha");
  alpha.end_epoch(100);
  EXPECT_NEAR(alpha.value(100), 0.5 + (0.76 - 0.5) / (1 + std::log(101.0)), 1e-12);
}

TEST(Schedule, SubtractTakesTheConstantItself) {
  auto settings = kAlpha;
  settings.schedule = "delta-code";
  settings.decay_mode = config::DecayMode::subtract;
  Schedule alpha(settings, 0, "distill.alpha");
  alpha.end_epoch(10);
  EXPECT_NEAR(alpha.value(10), 0.75, 1e-12);
  for (int epoch = 2; epoch < 10; ++epoch) alpha.end_epoch(10 * epoch);
  EXPECT_EQ(alpha.value(90), 0.5);
}

TEST(Schedule, RisingIsTheMirroredFormAndDoesNotJump) {
  for (const char* name : {"delta-paper", "delta-code"}) {
    Schedule beta({.schedule = name, .start = 0.1, .final = 0.2}, 0, "distill.beta");
    EXPECT_EQ(beta.value(0), 0.1);
    EXPECT_NEAR(beta.value(2), 0.2 - 0.1 / (1 + std::log(3.0)), 1e-12);
    beta.end_epoch(100);
    const double t = std::string(name) == "delta-code" ? 0.0 : 100.0;
    EXPECT_NEAR(beta.value(100), 0.2 - (0.2 - 0.105) / (1 + std::log1p(t)), 1e-12);
    for (int epoch = 0; epoch < 50; ++epoch) beta.end_epoch(200 + 100 * epoch);
    EXPECT_EQ(beta.value(5100), 0.2);
  }
}

TEST(Schedule, DeltaZeroAndEqualEndsStay) {
  Schedule still({.schedule = "delta-code", .start = 0.8, .final = 0.5, .decay = 0.0}, 0, "distill.alpha");
  still.end_epoch(50);
  EXPECT_EQ(still.value(50), 0.8);
  Schedule flat({.schedule = "delta-paper", .start = 0.3, .final = 0.3}, 0, "distill.alpha");
  flat.end_epoch(7);
  for (const int64_t step : {0, 1, 7, 1000}) EXPECT_EQ(flat.value(step), 0.3);
}

TEST(Schedule, TemperatureMayEndBelowOne) {
  const Schedule temperature({.schedule = "delta-paper", .start = 2.0, .final = 0.5}, 0, "distill.temperature");
  EXPECT_NEAR(temperature.value(2), 0.5 + 1.5 / (1 + std::log(3.0)), 1e-12);
}

TEST(Schedule, LinearAndCosineEndAtFinal) {
  const Schedule linear({.schedule = "linear", .start = 1.0, .final = 0.2}, 101, "distill.alpha");
  const Schedule cosine({.schedule = "cosine", .start = 1.0, .final = 0.2}, 101, "distill.alpha");
  EXPECT_EQ(linear.value(0), 1.0);
  EXPECT_EQ(cosine.value(0), 1.0);
  EXPECT_NEAR(linear.value(25), 0.8, 1e-12);
  EXPECT_NEAR(cosine.value(25), 0.2 + 0.8 * 0.5 * (1 + std::cos(M_PI / 4)), 1e-12);
  EXPECT_NEAR(linear.value(50), 0.6, 1e-12);
  EXPECT_NEAR(cosine.value(50), 0.6, 1e-12);
  for (const int64_t step : {100, 101, 5000}) {
    EXPECT_EQ(linear.value(step), 0.2);
    EXPECT_EQ(cosine.value(step), 0.2);
  }
  const Schedule one_step({.schedule = "linear", .start = 1.0, .final = 0.2}, 1, "distill.alpha");
  EXPECT_EQ(one_step.value(0), 1.0);
}

TEST(Schedule, ConstantIgnoresFinal) {
  Schedule constant({.schedule = "constant", .start = 0.1, .final = 7.0}, 0, "distill.beta");
  constant.end_epoch(3);
  EXPECT_EQ(constant.value(1000), 0.1);
}

TEST(Schedule, RestoreContinuesInMidEpoch) {
  for (const char* name : {"delta-paper", "delta-code", "linear", "cosine", "constant"}) {
    auto settings = kAlpha;
    settings.schedule = name;
    Schedule original(settings, 300, "distill.alpha");
    original.end_epoch(100);
    Schedule resumed(settings, 300, "distill.alpha");
    resumed.restore(json::parse(original.state().dump()));
    for (int64_t step = 150; step < 200; ++step) ASSERT_EQ(original.value(step), resumed.value(step)) << name;
    original.end_epoch(200);
    resumed.end_epoch(200);
    for (int64_t step = 200; step < 300; ++step) ASSERT_EQ(original.value(step), resumed.value(step)) << name;
  }
}

TEST(Schedule, RestoreRefusesAnotherSchedule) {
  const Schedule paper(kAlpha, 10, "distill.alpha");
  Schedule linear({.schedule = "linear", .start = 0.8, .final = 0.5}, 10, "distill.alpha");
  EXPECT_THROW(linear.restore(paper.state()), DataError);
  EXPECT_THROW(linear.restore(json::object()), DataError);
}

std::string message_of(const ScheduleSettings& settings, int64_t total_steps) {
  try {
    const Schedule schedule(settings, total_steps, "distill.alpha");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Schedule, WrongSettingsNameTheKey) {
  EXPECT_EQ(message_of({.schedule = "delta-papr"}, 1),
            "distill.alpha.schedule = \"delta-papr\": allowed are delta-paper, delta-code, linear, cosine, constant (did you mean "
            "'delta-paper'?)");
  EXPECT_NE(message_of({.schedule = "linear"}, 0).find("optimizer steps"), std::string::npos);
}

const std::vector<std::string> kOfTheProgram = schedule_names();  // before tests add theirs

TEST(ScheduleRegistry, HelpListsTheProgramsSchedules) {
  for (const char* key : {"distill.alpha.schedule", "distill.temperature.schedule", "distill.beta.schedule"})
    EXPECT_THAT(config::find_setting(key)->names, ::testing::UnorderedElementsAreArray(kOfTheProgram)) << key;
}

// A schedule is a name and a formula: nothing else knows it.
TEST(ScheduleRegistry, AScheduleFromOutsideAnneals) {
  add_schedule("halving",
               {.value = [](const SchedulePoint& p) { return p.final + (p.start - p.final) * std::exp2(-static_cast<double>(p.step)); }});
  EXPECT_THROW(add_schedule("halving", {}), ValueError);
  EXPECT_EQ(schedule_names().back(), "halving");
  Schedule alone({.schedule = "halving", .start = 0.9, .final = 0.1}, 4, "distill.alpha");
  EXPECT_DOUBLE_EQ(alone.value(1), 0.5);
  alone.end_epoch(2);
  EXPECT_DOUBLE_EQ(alone.value(3), 0.2);

  // Through a run file to what a step uses.
  const auto run = config::load_config_text("[distill]\nalpha = { schedule = \"halving\", start = 0.8, final = 0.4 }\n", "run.toml").run;
  check_before_length(run.distill, 8);
  const auto method = make_method(run.distill, 8, 1);
  EXPECT_DOUBLE_EQ(method->plan({.step = 2, .total_steps = 8, .epoch = 0, .num_epochs = 1}).alpha, 0.5);
  const auto resumed = make_method(run.distill, 8, 1);
  resumed->restore(json::parse(method->state().dump()));
  EXPECT_DOUBLE_EQ(resumed->plan({.step = 1, .total_steps = 8, .epoch = 0, .num_epochs = 1}).alpha, 0.6);
}

// What a kind says of itself: whether it counts in the epoch, needs the run's length, lets start decay.
TEST(ScheduleRegistry, KindsFromOutsideMayCountInEpochs) {
  add_schedule("saw", {.value = [](const SchedulePoint& p) { return p.start / static_cast<double>(1 + p.step); },
                       .counts_in_epoch = true,
                       .start_decays = true});
  add_schedule("square", {.value = [](const SchedulePoint& p) { return p.start * p.progress * p.progress; }, .needs_length = true});
  Schedule saw({.schedule = "saw", .start = 0.8, .final = 0.0, .decay = 0.5}, 0, "distill.alpha");
  EXPECT_EQ(saw.value(1), 0.4);
  saw.end_epoch(2);
  EXPECT_EQ(saw.value(2), 0.4);
  EXPECT_EQ(saw.value(3), 0.2);
  EXPECT_TRUE(depends_on_epochs({.schedule = "saw"}));
  EXPECT_FALSE(depends_on_epochs({.schedule = "square"}));
  EXPECT_TRUE(depends_on_epochs({.schedule = "delta-paper"}));
  EXPECT_FALSE(depends_on_epochs({.schedule = "delta-paper", .decay = 0.0}));
  EXPECT_EQ(Schedule({.schedule = "square", .start = 1.0}, 5, "distill.alpha").value(2), 0.25);
  EXPECT_NE(message_of({.schedule = "square"}, 0).find("optimizer steps"), std::string::npos);
}

}  // namespace
}  // namespace distil_xlstm::distill
