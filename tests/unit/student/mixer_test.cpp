// A mixer that the program does not know, through its public registry: what a new one gets for nothing.
#include "student/paper/mixers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "support/decay_mixer.h"
#include "unit/student/student_testing.h"

namespace distil_xlstm::student {
namespace {

using ::testing::HasSubstr;

StudentConfig with_decay_mixer() {
  add_decay_mixer();
  StudentConfig config = small_config();
  config.mixers = {"slstm", "decay", "mlstm", "decay"};
  config.check();
  return config;
}

TEST(MixerKinds, BlocksAreMadeByName) {
  const StudentConfig config = with_decay_mixer();
  std::vector<std::string> found;
  for (const auto& mixer : make_mixers(config)) found.emplace_back(mixer->kind());
  EXPECT_EQ(found, config.mixers);
  found.clear();
  for (const auto& mixer : make_mixers(small_config())) found.emplace_back(mixer->kind());
  EXPECT_THAT(found, ::testing::ElementsAre("slstm", "mlstm", "mlstm", "slstm"));
}

TEST(MixerKinds, UnknownKindsAndWrongCountsAreNamed) {
  const auto error_of = [](const StudentConfig& config) -> std::string {
    try {
      config.check();
      (void)make_mixers(config);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "no error";
  };
  StudentConfig config = with_decay_mixer();
  config.mixers[2] = "mlstn";
  EXPECT_THAT(error_of(config), HasSubstr("the mixer of block 2 = \"mlstn\": allowed are decay, mlstm, slstm (did you mean 'mlstm'?)"));
  config.mixers.pop_back();
  EXPECT_THAT(error_of(config), HasSubstr("student.mixers names 3 kinds for 4 blocks"));
  EXPECT_THROW(add_mixer_kind("mlstm", {}), ValueError);
}

TEST(MixerKinds, GradientsMatchDifferences) {
  StudentConfig config = with_decay_mixer();
  config.mixers.assign(4, "decay");  // alone: the others' maxima have kinks, which differences must not step over
  const auto student = small_student(config, at::kCPU);
  const Tensor tokens = random_tokens(config, 2, 7), projection = at::randn({2, 7, config.embedding_dim}, at::kDouble);
  const Tensor starts = at::zeros({2, 7}, at::kByte);
  starts[1][3] = 1;
  for (const bool recomputes : {false, true}) {
    StudentForwardOptions options = in_double();
    options.activation_checkpointing = recomputes;
    const auto grads = parameter_gradients(*student, tokens, starts, options, projection);
    const auto value = [&] {
      const at::NoGradGuard no_grad;
      return (student->forward(tokens, starts, options).last_hidden_BSD * projection).sum().item<double>();
    };
    for (size_t i = 0; i < grads.size(); ++i) {
      const auto& [name, parameter] = student->parameters()[i];
      const Tensor direction = at::randn_like(parameter.detach());
      const at::NoGradGuard no_grad;
      Tensor(parameter).add_(direction, 1e-5);
      const double after = value();
      Tensor(parameter).add_(direction, -2e-5);
      const double before = value();
      Tensor(parameter).add_(direction, 1e-5);
      const double expected = (after - before) / 2e-5, found = (grads[i] * direction).sum().item<double>();
      EXPECT_NEAR(found, expected, 1e-6 * (1 + std::abs(expected))) << name << " " << recomputes;
    }
  }
}

TEST(MixerKinds, DecodesAsItsFullForward) {
  const StudentConfig config = with_decay_mixer();
  const auto student = small_student(config, at::kCPU);
  const Tensor tokens = random_tokens(config, 3, 9), whole = student->forward_hidden(tokens);
  const auto state = student->new_state(3, 0);
  std::vector<Tensor> steps = {student->forward_step(tokens.narrow(1, 0, 4), *state)};
  for (int64_t at = 4; at < 9; ++at) steps.push_back(student->forward_step(tokens.narrow(1, at, 1), *state));
  EXPECT_LT(relative_error(at::cat(steps, 1), whole), 1e-12);
}

TEST(MixerKinds, FilesTraitsAndEstimatesKnowIt) {
  const StudentConfig config = with_decay_mixer();
  const auto student = small_student(config, at::kCPU, at::kFloat);
  const auto read = StudentConfig::from_json(config.to_json(), "config.json");
  EXPECT_EQ(read.mixers, config.mixers);
  const auto weights = std::make_shared<MemoryWeights>(student->stored_tensors(SlstmLayout::vanilla, true));
  const auto loaded = PaperStudent::load(memory_files(config.to_json("vanilla"), weights), at::kCPU);
  const Tensor tokens = random_tokens(config, 2, 5);
  EXPECT_TRUE(at::equal(loaded->forward_hidden(tokens), student->forward_hidden(tokens)));
  const auto traits = student->parameter_traits();
  const auto specs = parameter_specs(config);
  for (size_t i = 0; i < specs.size(); ++i) {
    EXPECT_EQ(traits[i].decays, specs[i].decays) << specs[i].name;
    EXPECT_EQ(traits[i].group, specs[i].group) << specs[i].name;
  }
  EXPECT_EQ(num_trainable_parameters(config), num_trainable_parameters(read));
  EXPECT_EQ(make_mixers(config)[1]->kept_values().size_bytes(2), (2 + 8) * config.embedding_dim);
}

TEST(MixerKinds, AStateOfAnotherStudentIsRefused) {
  const auto student = small_student(with_decay_mixer(), at::kCPU), other = small_student(small_config(), at::kCPU);
  const auto state = other->new_state(1, 0);
  EXPECT_THROW((void)student->forward_step(at::zeros({1, 1}, at::kLong), *state), ValueError);
}

}  // namespace
}  // namespace distil_xlstm::student
