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
  source->set("lm_head.weight", source->value("model.embed_tokens.weight").clone());
  const auto teacher = load_teacher(files_of(config, source), at::kCPU, at::kFloat);
  EXPECT_EQ(teacher->head_weight().data_ptr(), source->value("model.embed_tokens.weight").data_ptr());
  EXPECT_TRUE(teacher->has_tied_head());
  EXPECT_TRUE(teacher_shape(files_of(config, source)).is_tied);
}

// As transformers: what is stored beats tie_word_embeddings.
TEST(LoadTeacher, TakesAStoredHeadOfOtherValuesAndSaysSo) {
  const json config = tiny_config(true);
  for (const bool is_plain : {true, false}) {
    const auto source = std::make_shared<MemoryWeights>(parsed(config), io::DType::f32, is_plain);
    Tensor head = source->value("model.embed_tokens.weight").clone();
    head[10][7] += 1e-3;
    source->set("lm_head.weight", head);
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto teacher = load_teacher(files_of(config, source), at::kCPU, dtype);
      EXPECT_TRUE(at::equal(teacher->head_weight(), head.to(dtype)));
      EXPECT_FALSE(teacher->has_tied_head());
      EXPECT_EQ(teacher->num_parameters(), teacher_shape(config).num_parameters + 11 * 8);
    }
    const TeacherShape shape = teacher_shape(files_of(config, source));
    EXPECT_FALSE(shape.is_tied);
    EXPECT_EQ(shape.num_parameters, teacher_shape(config).num_parameters + 11 * 8);
  }
}

// transformers ties whichever of the two is there.
TEST(LoadTeacher, TakesATiedMatrixUnderEitherName) {
  const json config = tiny_config(true);
  const auto source = std::make_shared<MemoryWeights>(parsed(config));
  const Tensor matrix = source->value("model.embed_tokens.weight");
  source->set("lm_head.weight", matrix);
  source->remove("model.embed_tokens.weight");
  const auto teacher = load_teacher(files_of(config, source), at::kCPU, at::kFloat);
  EXPECT_EQ(teacher->embedding_weight().data_ptr(), matrix.data_ptr());
  EXPECT_EQ(teacher->head_weight().data_ptr(), matrix.data_ptr());
}

TEST(LoadTeacher, RefusesATiedHeadOfAnotherShape) {
  const json config = tiny_config(true);
  const auto source = std::make_shared<MemoryWeights>(parsed(config));
  source->add("lm_head.weight", {12, 8});
  EXPECT_THAT(
      error_of<DataError>([&] { load_teacher(files_of(config, source), at::kCPU, at::kFloat); }),
      HasSubstr("memory: tensor 'lm_head.weight' is [12, 8], but tie_word_embeddings = true makes the embedding, [11, 8], the head"));
}

TEST(LoadTeacher, SaysHowAMissingHeadMayBeTheEmbedding) {
  const json config = tiny_config(false);
  const auto source = std::make_shared<MemoryWeights>(parsed(config));
  source->remove("lm_head.weight");
  EXPECT_THAT(error_of<DataError>([&] { load_teacher(files_of(config, source), at::kCPU, at::kFloat); }),
              HasSubstr("1 missing tensors (lm_head.weight): weights and config.json do not belong together; where the head is the "
                        "embedding, config.json must say tie_word_embeddings = true"));
}

// Llama's attention_bias stands for o as well; models of other families that were stored as Llama have none there: zeros, as transformers
// fills them in.
TEST(LoadTeacher, TakesAttentionBiasesWithoutThatOfO) {
  for (const char* family : {"llama", "qwen3"}) {
    json config = tiny_config();
    config["model_type"] = family;
    config["attention_bias"] = true;
    const auto source = std::make_shared<MemoryWeights>(parsed(config)), zeros = std::make_shared<MemoryWeights>(*source);
    zeros->set("model.layers.0.self_attn.o_proj.bias", at::zeros({8}));
    source->remove("model.layers.0.self_attn.o_proj.bias");
    const Tensor tokens = at::arange(11, at::kLong).unsqueeze(0);
    const auto without = load_teacher(files_of(config, source), at::kCPU, at::kFloat);
    const auto with = load_teacher(files_of(config, zeros), at::kCPU, at::kFloat);
    EXPECT_LT(relative_error(without->forward_hidden(tokens), with->forward_hidden(tokens)), 1e-6) << family;
    source->remove("model.layers.0.self_attn.k_proj.bias");
    EXPECT_THAT(error_of<DataError>([&] { load_teacher(files_of(config, source), at::kCPU, at::kFloat); }),
                HasSubstr("1 missing tensors (model.layers.0.self_attn.k_proj.bias)"));
  }
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
