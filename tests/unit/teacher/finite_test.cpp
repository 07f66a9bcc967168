// Where a model's numbers stop being finite: the part, its weights, and what to do.
#include "nn/finite.h"

#include <limits>

#include "unit/teacher/teacher_testing.h"

namespace distil_xlstm::teacher {
namespace {

using ::testing::HasSubstr;
using testing::MemoryWeights;

const json kConfig = {{"model_type", "llama"},        {"vocab_size", 11},         {"hidden_size", 8},       {"intermediate_size", 6},
                      {"num_hidden_layers", 2},       {"num_attention_heads", 2}, {"attention_bias", true}, {"mlp_bias", true},
                      {"tie_word_embeddings", false}, {"num_key_value_heads", 2}};

struct Changed {
  std::string name;
  int64_t row = 0;
  double value = 0.0;
};

std::unique_ptr<Teacher> changed_teacher(const Changed& change, at::ScalarType dtype) {
  at::manual_seed(4);
  const auto weights = std::make_shared<MemoryWeights>(read_config(find_family(kConfig, "config.json"), kConfig, "config.json"));
  if (!change.name.empty()) {
    const Tensor value = weights->value(change.name).clone();
    value.select(0, change.row).fill_(change.value);
    weights->set(change.name, value);
  }
  io::ModelFiles files;
  files.path = "memory";
  files.config = kConfig;
  files.weights = weights;
  return load_teacher(files, at::kCPU, dtype);
}

const Tensor& tokens() {
  static const Tensor instance = at::tensor({1, 2, 3, 4, 5, 6}, at::kLong).view({2, 3});
  return instance;
}

TEST(NotFinite, NamesTheWeightThatIsNotFinite) {
  const std::vector<std::string> weights = {"model.embed_tokens.weight",
                                            "model.layers.0.self_attn.k_proj.weight",
                                            "model.layers.0.self_attn.v_proj.bias",
                                            "model.layers.1.input_layernorm.weight",
                                            "model.layers.1.self_attn.o_proj.bias",
                                            "model.layers.1.mlp.up_proj.weight",
                                            "model.layers.1.mlp.down_proj.weight",
                                            "model.norm.weight",
                                            "lm_head.weight"};
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const std::string& name : weights) {
      const auto teacher = changed_teacher({name, 3, std::numeric_limits<double>::quiet_NaN()}, dtype);
      const nn::NonFinite found = nn::find_non_finite(*teacher, tokens());
      EXPECT_TRUE(name.starts_with(found.part) && !found.part.empty()) << name << " " << found.part;
      EXPECT_EQ(found.weight, name);
      EXPECT_EQ(nn::description(found, "m"), fmt::format("m in {}: '{}' holds values that are not finite", teacher->precision(), name));
      EXPECT_THAT(nn::remedy(found, "--precision"), HasSubstr("the model is damaged"));
    }
  }
}

TEST(NotFinite, OneRowOfABatchDoesNotSpoilAnother) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto teacher = changed_teacher({"model.embed_tokens.weight", 3, std::numeric_limits<double>::quiet_NaN()}, dtype);  // of token 0
    const Tensor hidden_BSD = teacher->forward_hidden(at::tensor({1, 0, 3, 4, 5, 6}, at::kLong).view({2, 3}));
    EXPECT_TRUE(hidden_BSD[1].isfinite().all().item<bool>()) << dtype;
    EXPECT_TRUE(hidden_BSD[0][2].isnan().all().item<bool>()) << dtype;
  }
}

TEST(NotFinite, NamesTheLayerThatOutgrowsFp16) {
  // Finite weights whose product is beyond 65504.
  const Changed change{"model.layers.1.mlp.down_proj.bias", 2, 60000.0};
  EXPECT_EQ(nn::find_non_finite(*changed_teacher(change, at::kFloat), tokens()).part, "");
  EXPECT_EQ(nn::find_non_finite(*changed_teacher({"model.layers.0.mlp.gate_proj.bias", 2, 60000.0}, at::kBFloat16), tokens()).part, "");
  const auto half = changed_teacher({"model.layers.0.mlp.gate_proj.bias", 2, 60000.0}, at::kHalf);
  EXPECT_EQ(nn::why_not_finite(*half, "m", "teacher.precision", tokens()),
            "m in fp16: the output of model.layers.0 is not finite: its values outgrow fp16: set teacher.precision to bf16 or fp32");
  const auto weights = changed_teacher({"model.layers.1.mlp.down_proj.weight", 2, 1e5}, at::kHalf);
  EXPECT_EQ(
      nn::why_not_finite(*weights, "m", "--precision", tokens()),
      "m in fp16: 'model.layers.1.mlp.down_proj.weight' holds values that are not finite: they outgrow fp16, or the model is damaged: "
      "set --precision to bf16 or fp32");
}

TEST(NotFinite, SaysSoWhereNothingIsFound) {
  const auto teacher = changed_teacher({}, at::kFloat);
  EXPECT_THAT(nn::why_not_finite(*teacher, "m", "--precision", tokens()),
              HasSubstr("m in fp32: its figures are not finite, though every layer's output is on these tokens alone"));
}

// Every stored tensor comes back under its name, from every form that products have.
TEST(ForEachWeight, GivesTheStoredTensors) {
  at::manual_seed(5);
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    json config = kConfig;
    config["model_type"] = family;
    config.erase("mlp_bias");
    const auto parsed = read_config(find_family(config, "config.json"), config, "config.json");
    const auto weights = std::make_shared<MemoryWeights>(parsed);
    io::ModelFiles files;
    files.path = "memory";
    files.config = config;
    files.weights = weights;
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const auto teacher = load_teacher(files, at::kCPU, dtype);
      std::set<std::string> names;
      teacher->for_each_weight([&](const std::string& name, const Tensor& weight) {
        EXPECT_TRUE(at::equal(weight, weights->value(name).to(dtype))) << name;
        names.insert(name);
      });
      const auto stored = weights->names();
      EXPECT_EQ(names, std::set<std::string>(stored.begin(), stored.end())) << family;
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::teacher
