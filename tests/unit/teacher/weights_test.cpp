#include "unit/teacher/teacher_testing.h"

namespace distil_xlstm::teacher {
namespace {

using testing::devices;
using testing::error_of;
using ::testing::HasSubstr;
using testing::MemoryWeights;
using testing::relative_error;

json tiny_config(bool is_tied = true) {
  return {{"model_type", "llama"},        {"vocab_size", 11},         {"hidden_size", 8},         {"intermediate_size", 6},
          {"num_hidden_layers", 1},       {"num_attention_heads", 2}, {"num_key_value_heads", 1}, {"tie_word_embeddings", is_tied},
          {"max_position_embeddings", 32}};
}

nn::TransformerConfig parsed(const json& config) {
  return read_config(find_family(config, "config.json"), config, "config.json");
}

io::ModelFiles files_of(const json& config, std::shared_ptr<io::WeightSource> weights) {
  io::ModelFiles files;
  files.path = "memory";
  files.config = config;
  files.weights = std::move(weights);
  return files;
}

TEST(LoadTeacher, MapsWhatItCanAndJoinsTheRest) {
  const json config = tiny_config();
  const auto source = std::make_shared<MemoryWeights>(parsed(config));
  const nn::TransformerWeights weights = load_weights(parsed(config), source, at::kCPU, at::kFloat);
  EXPECT_EQ(weights.embedding_VD.data_ptr(), source->value("model.embed_tokens.weight").data_ptr()) << "copied instead of mapped";
  EXPECT_EQ(weights.layers[0].down_DI.weight().data_ptr(), source->value("model.layers.0.mlp.down_proj.weight").data_ptr());
  EXPECT_EQ(weights.head_VD.data_ptr(), weights.embedding_VD.data_ptr());
  const Tensor qkv =
      at::cat({source->value("model.layers.0.self_attn.q_proj.weight"), source->value("model.layers.0.self_attn.k_proj.weight"),
               source->value("model.layers.0.self_attn.v_proj.weight")});
  EXPECT_TRUE(at::equal(weights.layers[0].qkv_ED.weight(), qkv));
}

TEST(LoadTeacher, KeepsTheSourceOpen) {
  const json config = tiny_config();
  auto source = std::make_shared<MemoryWeights>(parsed(config));
  const std::weak_ptr<MemoryWeights> watched = source;
  auto teacher = load_teacher(files_of(config, std::move(source)), at::kCPU, at::kFloat);
  EXPECT_FALSE(watched.expired());
  const Tensor embedding = teacher->embedding_weight();
  teacher.reset();
  EXPECT_FALSE(watched.expired()) << "a student may share the embedding after the teacher is gone";
}

TEST(LoadTeacher, ConvertsFromEveryFormInPieces) {
  json config = tiny_config(false);
  config["vocab_size"] = 600000;  // more than one piece of rows
  const Tensor tokens = at::tensor({3, 1, 599999, 0}, at::kLong).view({1, 4});
  for (const at::Device device : devices()) {
    for (const bool is_plain : {true, false}) {
      at::manual_seed(5);
      const auto stored = std::make_shared<MemoryWeights>(parsed(config), io::DType::bf16, is_plain);
      const auto single = load_teacher(files_of(config, stored), device, at::kFloat);
      EXPECT_TRUE(at::equal(single->embedding_weight().cpu(), stored->value("model.embed_tokens.weight").to(at::kFloat)));
      EXPECT_TRUE(at::equal(single->head_weight().cpu(), stored->value("lm_head.weight").to(at::kFloat)));
      const auto half = load_teacher(files_of(config, stored), device, at::kBFloat16);
      EXPECT_EQ(half->head_weight().scalar_type(), at::kBFloat16);
      EXPECT_LT(relative_error(half->forward_hidden(tokens.to(device)), single->forward_hidden(tokens.to(device))), 1e-2);
    }
  }
}

TEST(LoadTeacher, NamesMissingExtraAndMisshapenTensors) {
  const json config = tiny_config(false);
  auto message = [&](auto change) {
    const auto source = std::make_shared<MemoryWeights>(parsed(config));
    change(*source);
    return error_of<DataError>([&] { load_teacher(files_of(config, source), at::kCPU, at::kFloat); });
  };
  const std::string both = message([](MemoryWeights& source) {
    source.remove("model.norm.weight");
    source.remove("lm_head.weight");
    source.add("model.layers.1.mlp.up_proj.weight", {6, 8});
  });
  EXPECT_THAT(both, HasSubstr("memory: 2 missing tensors (model.norm.weight, lm_head.weight)"));
  EXPECT_THAT(both, HasSubstr("1 unexpected tensors (model.layers.1.mlp.up_proj.weight)"));
  const std::string shape = message([](MemoryWeights& source) { source.add("model.layers.0.self_attn.k_proj.weight", {8, 8}); });
  EXPECT_THAT(shape, HasSubstr("'model.layers.0.self_attn.k_proj.weight' is [8, 8], config.json asks for [4, 8]"));
  const std::string harmless = message([](MemoryWeights& source) { source.add("model.layers.0.self_attn.rotary_emb.inv_freq", {2}); });
  EXPECT_EQ(harmless, "<no exception>");
}

TEST(LoadTeacher, IgnoresTheStoredCopyOfATiedHead) {
  const json config = tiny_config(true);
  const auto source = std::make_shared<MemoryWeights>(parsed(config));
  source->add("lm_head.weight", {11, 8});
  const auto teacher = load_teacher(files_of(config, source), at::kCPU, at::kFloat);
  EXPECT_EQ(teacher->head_weight().data_ptr(), source->value("model.embed_tokens.weight").data_ptr());
}

TEST(LoadTeacher, RefusesOtherPrecisions) {
  const json config = tiny_config();
  const auto source = std::make_shared<MemoryWeights>(parsed(config));
  EXPECT_THAT(error_of<ValueError>([&] { load_teacher(files_of(config, source), at::kCPU, at::kInt); }),
              HasSubstr("float32, bfloat16 or float16"));
}

TEST(Teacher, RefusesGroupsThatDoNotFitItsDepth) {
  const json config = tiny_config();
  const auto teacher = load_teacher(files_of(config, std::make_shared<MemoryWeights>(parsed(config))), at::kCPU, at::kFloat);
  TeacherForwardOptions options;
  options.group_sizes = {1, 1};
  EXPECT_THAT(error_of<ValueError>([&] { (void)teacher->forward(at::zeros({1, 2}, at::kLong), {}, options); }),
              HasSubstr("group_sizes 1, 1"));
}

TEST(RandomTeacher, IsTheSameModelInEveryTypeAndOnEveryDevice) {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    json config = tiny_config(/*is_tied=*/false);
    config["model_type"] = family;
    const auto hidden = [&](at::Device device, at::ScalarType dtype) {
      at::manual_seed(5);
      const auto model = random_teacher(config, device, {dtype}, at::kCPU);
      EXPECT_EQ(model->num_parameters(), teacher_shape(config).num_parameters);
      const Tensor tokens = at::arange(11, at::kLong).unsqueeze(0).to(device);
      return model->logits(model->forward_hidden(tokens));
    };
    const Tensor exact = hidden(at::kCPU, at::kDouble);
    EXPECT_GT(exact.std().item<double>(), 0.0);
    for (const at::Device device : devices()) {
      EXPECT_LT(relative_error(hidden(device, at::kFloat), exact), 1e-5) << family << device;
      if (device.is_cuda()) {
        EXPECT_LT(relative_error(hidden(device, at::kBFloat16), exact), 2e-2) << family << device;
      }
    }
  }
}

}  // namespace
}  // namespace distil_xlstm::teacher
