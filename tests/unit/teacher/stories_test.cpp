// The real model that travels with the program.
#include <gmock/gmock.h>

#include "base/error.h"
#include "support/source_directory.h"
#include "unit/teacher/teacher_testing.h"

namespace distil_xlstm::teacher {
namespace {

using testing::devices;
using testing::golden_model;
using testing::read_tensors;
using testing::relative_error;

std::unique_ptr<Teacher> stories(at::Device device) {
  const fs::path directory = source_directory() / "share/models/stories260K";
  return load_teacher(io::open_model(directory.string()), device, at::kFloat);
}

// BOS and 200 greedy tokens, whose text is expected_greedy.txt beside the model (checked where the values were made), and their losses.
std::map<std::string, Tensor> expected() {
  return read_tensors(golden_model("stories260K.safetensors"));
}

Tensor next_token(Teacher& teacher, const Tensor& hidden_BSD) {
  return teacher.logits(hidden_BSD.select(1, -1)).argmax(-1, true);
}

TEST(Stories260K, WritesItsStoryWithTheCache) {
  const Tensor story = expected()["tokens"];
  for (const at::Device device : devices()) {
    const auto teacher = stories(device);
    EXPECT_EQ(teacher->description(), "Llama, 5 layers, 260.0 k parameters");
    const auto state = teacher->new_state(1, story.size(1));
    Tensor token = story.narrow(1, 0, 1).to(device);
    std::vector<Tensor> written = {token};
    while (static_cast<int64_t>(written.size()) < story.size(1)) {
      token = next_token(*teacher, teacher->forward_step(token, *state));
      written.push_back(token);
    }
    EXPECT_TRUE(at::equal(at::cat(written, 1).cpu(), story));
  }
}

TEST(Stories260K, WritesItsStoryWithoutOne) {
  const Tensor story = expected()["tokens"];
  for (const at::Device device : devices()) {
    const auto teacher = stories(device);
    Tensor tokens = story.narrow(1, 0, 1).to(device);
    while (tokens.size(1) < story.size(1)) tokens = at::cat({tokens, next_token(*teacher, teacher->forward_hidden(tokens))}, 1);
    EXPECT_TRUE(at::equal(tokens.cpu(), story));
  }
}

TEST(Stories260K, LosesWhatItShould) {
  const Tensor story = expected()["tokens"], nll = expected()["nll"];
  for (const at::Device device : devices()) {
    const auto teacher = stories(device);
    const Tensor logits = teacher->logits(teacher->forward_hidden(story.to(device))).cpu();
    const Tensor log_probabilities = logits.narrow(1, 0, nll.size(1)).log_softmax(-1);
    const Tensor measured = -log_probabilities.gather(2, story.narrow(1, 1, nll.size(1)).unsqueeze(2)).squeeze(2);
    EXPECT_LT(relative_error(measured, nll), 1e-5);
  }
}

TEST(Stories260K, InFp8PredictsNearlyTheSame) {
  const Tensor story = expected()["tokens"];
  for (const at::Device device : devices()) {
    const auto teacher = stories(device);
    const Tensor before = teacher->logits(teacher->forward_hidden(story.to(device)));
    Tensor mask = at::ones_like(story);
    mask.narrow(1, 0, 50).fill_(0);
    const Fp8Effect effect = use_fp8_products(*teacher, story.to(device), {}, mask.to(at::kByte));
    EXPECT_EQ(effect.num_positions, story.numel() - 50);
    const Tensor after = teacher->logits(teacher->forward_hidden(story.to(device)));
    const auto seen = [](const Tensor& logits) { return logits.narrow(1, 50, logits.size(1) - 50).to(at::kDouble).log_softmax(-1); };
    const double kl = (seen(before).exp() * (seen(before) - seen(after))).sum(-1).mean().item<double>();
    EXPECT_NEAR(effect.kl, kl, 1e-6 + 1e-3 * kl);
    EXPECT_GT(effect.kl, 1e-5) << "nothing was rounded";
    EXPECT_LT(effect.kl, 0.1);
    EXPECT_GT(effect.agreement, 0.85);
    EXPECT_THAT(description(effect), ::testing::StartsWith("KL "));
  }
}

TEST(Precision, NamesWhatTheLayersMultiplyIn) {
  const Precision fp8 = parse_precision("fp8", at::kCPU), fp32 = parse_precision("auto", at::kCPU);
  EXPECT_TRUE(fp8.has_fp8_products);
  EXPECT_EQ(fp8.dtype, at::kFloat);
  EXPECT_EQ(precision_name(fp8), "fp8");
  EXPECT_FALSE(fp32.has_fp8_products);
  EXPECT_EQ(precision_name(fp32), "fp32");
  EXPECT_EQ(parse_precision("fp8", at::Device(at::kCUDA, 0)).dtype, at::kBFloat16);
  EXPECT_THROW((void)parse_precision("fp7", at::kCPU), ConfigError);
}

}  // namespace
}  // namespace distil_xlstm::teacher
