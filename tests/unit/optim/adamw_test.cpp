#include "optim/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "support/devices.h"
#include "support/source_directory.h"

namespace distil_xlstm::optim {
namespace {

using testing::devices;

Tensor tensor_of(const json& values, at::IntArrayRef shape, at::Device device) {
  return at::tensor(values.get<std::vector<double>>(), at::kDouble).to(at::kFloat).view(shape).to(device);
}

double relative_error(const Tensor& out, const Tensor& reference) {
  const Tensor wanted = reference.cpu().to(at::kDouble);
  return ((out.detach().cpu().to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

Tensor leaf(const Tensor& values) {
  return values.clone().requires_grad_(true);
}

// Weights decay, biases and norms do not.
std::vector<ParameterRule> rules_of(const NamedTensors& parameters) {
  std::vector<ParameterRule> rules;
  for (const auto& [name, parameter] : parameters)
    rules.push_back({.decays = name.find("weight") != std::string::npos && name.find("norm") == std::string::npos});
  return rules;
}

TEST(AdamW, TenStepsAsPyTorch) {
  const json golden = read_json(golden_directory() / "distill_optim.json");
  for (const at::Device device : devices()) {
    NamedTensors parameters;
    for (const auto& [name, shape] : golden["shapes"].items()) {
      parameters.emplace_back(name, leaf(tensor_of(golden["start"][name], shape.get<std::vector<int64_t>>(), device)));
    }
    AdamW optimizer(parameters, {.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-6, .weight_decay = 0.1}, rules_of(parameters));
    int step = 0;
    for (const json& wanted : golden["steps"]) {
      for (auto& [name, parameter] : parameters) {
        parameter.mutable_grad() = tensor_of(wanted["gradients"][name], parameter.sizes(), device);
      }
      const double norm = grad_norm(parameters).item<double>();
      EXPECT_NEAR(norm, wanted["norm"].get<double>(), 1e-6 * norm);
      optimizer.step(1e-2 / (1 + step++), grad_divisor(norm, 1.0, 1.0));
      for (const auto& [name, parameter] : parameters) {
        EXPECT_LT(relative_error(parameter, tensor_of(wanted["parameters"][name], parameter.sizes(), device)), 1e-6)
            << name << " step " << step;
      }
    }
    EXPECT_EQ(optimizer.steps(), 10);
    for (const auto& [name, state] : optimizer.state_tensors()) {
      const auto dot = name.find('.');
      const json& wanted = golden["state"][name.substr(dot + 1)][name.substr(0, dot)];
      EXPECT_LT(relative_error(state, tensor_of(wanted, state.sizes(), device)), 1e-6) << name;
    }
  }
}

TEST(AdamW, RestoreContinuesToTheBit) {
  at::manual_seed(3);
  const NamedTensors first = {{"a.weight", leaf(at::randn({4, 6}))}, {"a.bias", leaf(at::randn({5}))}};
  AdamW original(first, {}, rules_of(first));
  const auto run_step = [](const NamedTensors& parameters, AdamW& optimizer, int seed) {
    at::manual_seed(static_cast<uint64_t>(seed));
    for (const auto& [name, parameter] : parameters) parameter.mutable_grad() = at::randn(parameter.sizes());
    optimizer.step(1e-2);
  };
  for (int i = 0; i < 3; ++i) run_step(first, original, i);
  NamedTensors second, saved;
  for (const auto& [name, parameter] : first) second.emplace_back(name, leaf(parameter.detach()));
  for (const auto& [name, state] : original.state_tensors()) saved.emplace_back(name, state.clone());
  AdamW resumed(second, {}, rules_of(second));
  const auto find = [&](const std::string& wanted) {
    for (const auto& [name, state] : saved) {
      if (name == wanted) return state;
    }
    return Tensor();
  };
  resumed.restore(find, original.steps());
  for (int i = 3; i < 6; ++i) run_step(first, original, i), run_step(second, resumed, i);
  for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::equal(first[i].second, second[i].second));
}

TEST(AdamW, DividesGradients) {
  for (const at::Device device : devices()) {
    const Tensor start = at::randn({37}, device), gradient = at::randn({37}, device);
    const NamedTensors plain = {{"a.weight", leaf(start)}, {"a.bias", leaf(start)}},
                       scaled = {{"a.weight", leaf(start)}, {"a.bias", leaf(start)}};
    AdamW first(plain, {}, rules_of(plain)), second(scaled, {}, rules_of(scaled));
    for (const double divisor : {64.0, 3.0, 1.0}) {
      for (const auto& [name, parameter] : plain) parameter.mutable_grad() = gradient.clone();
      for (const auto& [name, parameter] : scaled) parameter.mutable_grad() = gradient * divisor;
      first.step(1e-2);
      second.step(1e-2, divisor);
      for (size_t i = 0; i < plain.size(); ++i) {
        EXPECT_LT(relative_error(scaled[i].second, plain[i].second), 1e-6) << device.str() << " " << divisor;
        EXPECT_LT(relative_error(scaled[i].second.grad(), gradient), 1e-6) << device.str() << " " << divisor;
      }
    }
    const auto first_state = first.state_tensors(), second_state = second.state_tensors();
    for (size_t i = 0; i < first_state.size(); ++i) EXPECT_LT(relative_error(second_state[i].second, first_state[i].second), 1e-6);
  }
}

// The student's converted weights go by the parameters' versions, which LibTorch's fused operation leaves alone.
TEST(AdamW, AStepCountsAsAChange) {
  const Tensor parameter = at::ones({3}).requires_grad_();
  AdamW optimizer({{"weight", parameter}}, {}, {{.decays = true}});
  const int64_t before = parameter._version();
  parameter.mutable_grad() = at::ones({3});
  optimizer.step(0.1);
  EXPECT_GT(parameter._version(), before);
}

// Each parameter with a rate of its own moves as one of an optimizer with that learning rate does.
TEST(AdamW, RatesAreFactorsOfTheLearningRate) {
  for (const at::Device device : devices()) {
    const Tensor start = at::randn({3, 5}, device), gradient = at::randn({3, 5}, device);
    const std::vector<ParameterRule> rules = {{.decays = true}, {.decays = true, .rate = 0.25}, {.rate = 0.25}, {.rate = 4.0}};
    NamedTensors together;
    for (size_t i = 0; i < rules.size(); ++i) together.emplace_back(std::to_string(i), leaf(start));
    AdamW all(together, {.weight_decay = 0.1}, rules);
    for (size_t i = 0; i < rules.size(); ++i) {
      const NamedTensors alone = {{"alone", leaf(start)}};
      AdamW one(alone, {.weight_decay = 0.1}, {{.decays = rules[i].decays}});
      for (int step = 0; step < 3; ++step) {
        alone[0].second.mutable_grad() = gradient.clone();
        one.step(rules[i].rate * 1e-2);
        if (i > 0) continue;
        for (const auto& [name, parameter] : together) parameter.mutable_grad() = gradient.clone();
        all.step(1e-2);
      }
      EXPECT_TRUE(at::equal(together[i].second, alone[0].second)) << i;
    }
  }
}

TEST(AdamW, LeavesParametersWithoutGradientAlone) {
  const NamedTensors parameters = {{"a.weight", leaf(at::ones({3}))}, {"b.weight", leaf(at::ones({3}))}};
  AdamW optimizer(parameters, {}, rules_of(parameters));
  parameters[0].second.mutable_grad() = at::ones({3});
  optimizer.step(0.1);
  EXPECT_FALSE(at::equal(parameters[0].second, at::ones({3})));
  EXPECT_TRUE(at::equal(parameters[1].second, at::ones({3})));
  optimizer.zero_grad();
  EXPECT_FALSE(parameters[0].second.grad().defined());
  optimizer.step(0.1);  // nothing to do
}

TEST(AdamW, RefusesWrongParametersAndStates) {
  EXPECT_THROW(AdamW({{"a", at::ones({2}, at::kDouble).requires_grad_(true)}}, {}, {ParameterRule{}}), ValueError);
  const Tensor parameter = leaf(at::ones({2}));
  EXPECT_THROW(AdamW({{"a", parameter * 2}}, {}, {ParameterRule{}}), ValueError);
  EXPECT_THROW(AdamW({{"a", parameter}}, {}, {}), ValueError) << "nothing says whether it decays";
  AdamW optimizer({{"a", parameter}}, {}, {ParameterRule{}});
  EXPECT_THROW(optimizer.restore([](const std::string&) { return Tensor(); }, 1), DataError);
  EXPECT_THROW(optimizer.restore([](const std::string&) { return at::ones({3}); }, 1), DataError);
}

TEST(GradNorm, IsOfAllGradientsAndFindsNonFiniteOnes) {
  for (const at::Device device : devices()) {
    const NamedTensors parameters = {
        {"a", leaf(at::zeros({2}, device))}, {"b", leaf(at::zeros({1}, device))}, {"c", leaf(at::zeros({1}, device))}};
    const auto set = [&](double b) {
      parameters[0].second.mutable_grad() = at::full({2}, 2.0, at::TensorOptions(at::kFloat).device(device));
      parameters[1].second.mutable_grad() = at::full({1}, b, at::TensorOptions(at::kFloat).device(device));
    };
    set(1.0);
    EXPECT_FLOAT_EQ(grad_norm(parameters).item<float>(), 3.0F);
    EXPECT_FLOAT_EQ(parameters[0].second.grad()[0].item<float>(), 2.0F);
    EXPECT_FALSE(parameters[2].second.grad().defined());
    EXPECT_TRUE(non_finite_gradients(parameters).empty());
    for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
      set(bad);
      EXPECT_FALSE(std::isfinite(grad_norm(parameters).item<double>()));
      EXPECT_EQ(non_finite_gradients(parameters), (std::vector<std::string>{"b"}));
    }
  }
  EXPECT_EQ(grad_norm({}).item<double>(), 0.0);
}

TEST(GradDivisor, TakesTheLossScaleAndClips) {
  EXPECT_EQ(grad_divisor(3.0, 1.0, 0.0), 1.0);
  EXPECT_EQ(grad_divisor(3.0, 1.0, 10.0), 1.0);
  EXPECT_EQ(grad_divisor(0.0, 1.0, 1.0), 1.0);
  EXPECT_NEAR(grad_divisor(3.0, 1.0, 1.5), 2.0, 1e-5);
  EXPECT_EQ(grad_divisor(3.0, 1024.0, 10.0), 1024.0);
  EXPECT_NEAR(grad_divisor(3.0, 1024.0, 1.5), 2048.0, 1e-2);
}

using config::LearningRateSchedule;

TEST(LearningRate, FactorsAsTransformers) {
  const json golden = read_json(golden_directory() / "distill_optim.json");
  for (const json& row : golden["rates"]) {
    const auto total = row["total_steps"].get<int64_t>();
    for (int64_t step = 0; step < total; ++step) {
      EXPECT_NEAR(learning_rate_factor(config::parse_name<LearningRateSchedule>(row["schedule"].get<std::string>(), "schedule"), step,
                                       total, row["warmup_ratio"], 0.0),
                  row["factors"][static_cast<size_t>(step)].get<double>(), 1e-12)
          << row["schedule"] << " " << step << " of " << total;
    }
  }
}

TEST(LearningRate, EndsAtTheMinimum) {
  for (const auto schedule : {LearningRateSchedule::cosine, LearningRateSchedule::linear}) {
    EXPECT_NEAR(learning_rate_factor(schedule, 100, 100, 0.1, 0.05), 0.05, 1e-12);
    EXPECT_NEAR(learning_rate_factor(schedule, 5000, 100, 0.1, 0.05), 0.05, 1e-12);
    EXPECT_NEAR(learning_rate_factor(schedule, 55, 100, 0.1, 0.05), 0.05 + 0.95 * 0.5, 1e-12);
    EXPECT_NEAR(learning_rate_factor(schedule, 5, 100, 0.1, 0.05), 0.5, 1e-12);
  }
  EXPECT_EQ(learning_rate_factor(LearningRateSchedule::constant, 1, 1, 0.0, 0.0), 1.0);
}

TEST(LossScaler, HalvesAndDoublesAsGradScaler) {
  LossScaler scaler(true, 1024.0, 3);
  EXPECT_EQ(scaler.scale(), 1024.0);
  scaler.update(true);
  EXPECT_EQ(scaler.scale(), 512.0);
  scaler.update(false);
  scaler.update(false);
  EXPECT_EQ(scaler.scale(), 512.0);
  LossScaler resumed(true, 1.0, 3);
  resumed.restore(json::parse(scaler.state().dump()));
  resumed.update(false);
  EXPECT_EQ(resumed.scale(), 1024.0);
  resumed.update(false);
  resumed.update(true);  // an overflow starts the count again
  resumed.update(false);
  resumed.update(false);
  EXPECT_EQ(resumed.scale(), 512.0);
  resumed.update(false);
  EXPECT_EQ(resumed.scale(), 1024.0);
  LossScaler disabled(false, 1024.0);
  disabled.update(true);
  EXPECT_EQ(disabled.scale(), 1.0);
  EXPECT_THROW(LossScaler(true, 0.0), ConfigError);
}

TEST(LearningRateBackoff, HalvesAndRecovers) {
  LearningRateBackoff backoff;
  backoff.update(false);
  EXPECT_EQ(backoff.scale(), 1.0);
  backoff.update(true);
  backoff.update(true);
  EXPECT_EQ(backoff.scale(), 0.25);
  for (int i = 0; i < LearningRateBackoff::kRecoverySteps; ++i) backoff.update(false);
  EXPECT_NEAR(backoff.scale(), 0.5, 1e-12);
  LearningRateBackoff resumed;
  resumed.restore(json::parse(backoff.state().dump()));
  EXPECT_EQ(resumed.scale(), backoff.scale()) << "the same bits";
  for (int i = 0; i <= LearningRateBackoff::kRecoverySteps; ++i) resumed.update(false);
  EXPECT_EQ(resumed.scale(), 1.0);
}

}  // namespace
}  // namespace distil_xlstm::optim
