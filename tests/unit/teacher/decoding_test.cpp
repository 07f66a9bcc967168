// Token by token beside the whole text, for every family, type and number of rows; and that nothing of a model changes on the way.
#include "unit/teacher/teacher_testing.h"

namespace distil_xlstm::teacher {
namespace {

using testing::devices;
using testing::MemoryWeights;
using testing::relative_error;
using testing::tolerance;

struct Model {
  const char* name;
  json config;
};

std::vector<Model> models() {
  const json sizes = {{"vocab_size", 19},         {"hidden_size", 24},        {"intermediate_size", 20},       {"num_hidden_layers", 2},
                      {"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"max_position_embeddings", 32}, {"head_dim", 8}};
  const auto with = [&](const char* name, const json& keys) {
    json config = sizes;
    config.update(keys);
    return Model{name, config};
  };
  return {with("llama", {{"model_type", "llama"}, {"tie_word_embeddings", true}}),
          with("llama with biases", {{"model_type", "llama"}, {"attention_bias", true}, {"mlp_bias", true}}),
          with("qwen2", {{"model_type", "qwen2"}}), with("qwen3", {{"model_type", "qwen3"}}),
          with("qwen3 with biases", {{"model_type", "qwen3"}, {"attention_bias", true}})};
}

std::map<std::string, Tensor> copied(const MemoryWeights& weights) {
  std::map<std::string, Tensor> copies;
  for (const std::string& name : weights.names()) copies[name] = weights.value(name).clone();
  return copies;
}

TEST(Decoding, EqualsTheWholeTextAndChangesNoParameter) {
  at::manual_seed(11);
  for (const auto& [name, config] : models()) {
    const auto parsed = read_config(find_family(config, "config.json"), config, "config.json");
    const auto weights = std::make_shared<MemoryWeights>(parsed, io::DType::bf16);
    const auto before = copied(*weights);
    io::ModelFiles files;
    files.path = "memory";
    files.config = config;
    files.weights = weights;
    const auto exact = load_teacher(files, at::kCPU, at::kFloat);
    for (const at::Device device : devices()) {
      for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
        const auto teacher = load_teacher(files, device, dtype);
        // bfloat16 rounds every step of two layers.
        const double limit = dtype == at::kBFloat16 ? 2e-2 : tolerance(dtype);
        for (const int64_t rows : {1, 3}) {
          for (const int64_t prompt : {1, 5}) {
            SCOPED_TRACE(fmt::format("{} on {} in {}, {} rows, prompt of {}", name, device.str(), c10::toString(dtype), rows, prompt));
            const Tensor tokens = at::randint(19, {rows, 12}, at::kLong), on_device = tokens.to(device);
            const Tensor whole = teacher->forward_hidden(on_device), logits = teacher->logits(whole);
            const auto state = teacher->new_state(rows, 12);
            std::vector<Tensor> parts = {teacher->forward_step(on_device.narrow(1, 0, prompt), *state)};
            for (int64_t at = prompt; at < 12; ++at) parts.push_back(teacher->forward_step(on_device.narrow(1, at, 1), *state));
            EXPECT_LT(relative_error(at::cat(parts, 1), exact->forward_hidden(tokens)), limit);
            EXPECT_TRUE(at::equal(teacher->forward_hidden(on_device), whole)) << "decoding has changed the model";
            EXPECT_TRUE(at::equal(teacher->logits(whole), logits));
          }
        }
      }
    }
    for (const auto& [tensor, value] : before) EXPECT_TRUE(at::equal(weights->value(tensor), value)) << name << ": " << tensor;
  }
}

// A text of one token is one row of every product, whatever the model is asked for.
TEST(Decoding, OneTokenIsTheFirstOfMany) {
  at::manual_seed(12);
  for (const auto& [name, config] : models()) {
    const auto parsed = read_config(find_family(config, "config.json"), config, "config.json");
    io::ModelFiles files;
    files.path = "memory";
    files.config = config;
    files.weights = std::make_shared<MemoryWeights>(parsed);
    const auto teacher = load_teacher(files, at::kCPU, at::kFloat);
    const Tensor tokens = at::randint(19, {2, 6}, at::kLong);
    for (const config::LayerState target : {config::LayerState::block_output, config::LayerState::attention_output}) {
      TeacherForwardOptions options;
      options.target = target;
      options.collect_mean = true;
      const TeacherOutput whole = teacher->forward(tokens, {}, options);
      for (int repeat = 0; repeat < 3; ++repeat) {
        const TeacherOutput one = teacher->forward(tokens.narrow(0, 0, 1).narrow(1, 0, 1), {}, options);
        EXPECT_LT(relative_error(one.last_hidden_BSD, whole.last_hidden_BSD.narrow(0, 0, 1).narrow(1, 0, 1)), 1e-5) << name;
        EXPECT_LT(relative_error(one.hidden_mean_BSD, whole.hidden_mean_BSD.narrow(0, 0, 1).narrow(1, 0, 1)), 1e-5) << name;
      }
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::teacher
