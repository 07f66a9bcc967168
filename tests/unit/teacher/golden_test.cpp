// What transformers computes for tiny random models of every family (tests/golden/make_teacher.py).
#include "unit/teacher/teacher_testing.h"

namespace distil_xlstm::teacher {
namespace {

using testing::devices;
using testing::golden_model;
using testing::read_tensors;
using testing::relative_error;

class Golden : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Teacher> load(at::Device device, at::ScalarType dtype = at::kFloat) {
    return load_teacher(io::open_model(golden_model(GetParam()).string()), device, dtype);
  }
  std::map<std::string, Tensor> expected_ = read_tensors(golden_model(GetParam()) / "expected.safetensors");
  Tensor no_starts_;
};

TEST_P(Golden, LogitsAndLayerStates) {
  for (const at::Device device : devices()) {
    const auto teacher = load(device);
    const Tensor tokens = expected_["tokens"].to(device);
    for (const config::LayerState target : {config::LayerState::block_output, config::LayerState::attention_output}) {
      TeacherForwardOptions options;
      options.target = target;
      options.collect_all = true;
      const TeacherOutput output = teacher->forward(tokens, no_starts_, options);
      EXPECT_LT(relative_error(output.last_hidden_BSD, expected_["last_hidden"]), 1e-5);
      EXPECT_LT(relative_error(teacher->logits(output.last_hidden_BSD), expected_["logits"]), 1e-5);
      ASSERT_EQ(static_cast<int64_t>(output.hidden_BSD.size()), teacher->num_layers());
      for (size_t layer = 0; layer < output.hidden_BSD.size(); ++layer) {
        const std::string name = (target == config::LayerState::block_output ? "hidden." : "attention.") + std::to_string(layer);
        EXPECT_LT(relative_error(output.hidden_BSD[layer], expected_.at(name)), 1e-5) << name;
      }
    }
    EXPECT_LT(relative_error(teacher->forward_hidden(tokens), expected_["last_hidden"]), 1e-5);
  }
}

TEST_P(Golden, RightPaddedRows) {
  for (const at::Device device : devices()) {
    const Tensor hidden = load(device)->forward_hidden(expected_["tokens"].to(device)).cpu();
    const Tensor lengths = expected_["lengths"];
    const Tensor mask = at::arange(hidden.size(1)).unsqueeze(0) < lengths.unsqueeze(1);
    EXPECT_LT(relative_error(hidden * mask.unsqueeze(2), expected_["padded_last_hidden"]), 1e-5);
  }
}

TEST_P(Golden, DocumentsAreCutApart) {
  for (const at::Device device : devices()) {
    const auto teacher = load(device);
    const Tensor tokens = expected_["tokens"].to(device);
    for (const Tensor& is_start : {expected_["is_start"], expected_["is_start"].to(device)}) {
      const Tensor hidden = teacher->forward_hidden(tokens, is_start);
      EXPECT_LT(relative_error(hidden, expected_["documents_last_hidden"]), 1e-5);
      EXPECT_GT(relative_error(hidden, expected_["last_hidden"]), 1e-2) << "the cut changed nothing";
    }
  }
}

TEST_P(Golden, DecodingWithTheCache) {
  for (const at::Device device : devices()) {
    const auto teacher = load(device);
    const Tensor tokens = expected_["tokens"].to(device);
    const auto state = teacher->new_state(tokens.size(0), tokens.size(1));
    std::vector<Tensor> parts = {teacher->forward_step(tokens.narrow(1, 0, 3), *state)};
    for (int64_t s = 3; s < tokens.size(1); ++s) parts.push_back(teacher->forward_step(tokens.narrow(1, s, 1), *state));
    EXPECT_EQ(state->num_tokens(), tokens.size(1));
    EXPECT_LT(relative_error(at::cat(parts, 1), expected_["last_hidden"]), 1e-5);
  }
}

TEST_P(Golden, MeansAreThoseOfTheStates) {
  for (const at::Device device : devices()) {
    const auto teacher = load(device);
    const int64_t L = teacher->num_layers();
    TeacherForwardOptions options;
    options.collect_mean = true;
    options.group_sizes = L == 1 ? std::vector<int64_t>{1} : std::vector<int64_t>{1, L - 1};
    std::vector<Tensor> states;
    for (int64_t layer = 0; layer < L; ++layer) states.push_back(expected_.at("hidden." + std::to_string(layer)));
    const TeacherOutput output = teacher->forward(expected_["tokens"].to(device), no_starts_, options);
    EXPECT_TRUE(output.hidden_BSD.empty());
    EXPECT_LT(relative_error(output.hidden_mean_BSD, at::stack(states).mean(0)), 1e-5);
    ASSERT_EQ(output.group_means_BSD.size(), options.group_sizes.size());
    EXPECT_LT(relative_error(output.group_means_BSD[0], states[0]), 1e-5);
    if (L > 1) {
      const Tensor rest = at::stack(std::vector<Tensor>(states.begin() + 1, states.end())).mean(0);
      EXPECT_LT(relative_error(output.group_means_BSD[1], rest), 1e-5);
    }

    options.post_norm_last = true;
    states.back() = expected_["last_hidden"];
    const TeacherOutput normed = teacher->forward(expected_["tokens"].to(device), no_starts_, options);
    EXPECT_LT(relative_error(normed.hidden_mean_BSD, at::stack(states).mean(0)), 1e-5);
  }
}

TEST_P(Golden, HeadIsTiedWhereItSays) {
  const auto teacher = load(at::kCPU);
  EXPECT_EQ(teacher->has_tied_head(), teacher->head_weight().data_ptr() == teacher->embedding_weight().data_ptr());
}

INSTANTIATE_TEST_SUITE_P(Families, Golden, ::testing::Values("llama", "llama3_odd", "llama_linear", "qwen2_yarn", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace distil_xlstm::teacher
