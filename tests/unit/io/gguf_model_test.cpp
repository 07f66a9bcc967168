// A GGUF file as a Hugging Face model: names, row order, config and what is refused.
#include "io/gguf_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/hash.h"
#include "support/source_directory.h"
#include "unit/io/gguf_testing.h"
#include "unit/io/io_testing.h"

namespace distil_xlstm::io {
namespace {

using ::testing::HasSubstr;

fs::path golden(const std::string& name) {
  return golden_directory() / name;
}

std::vector<float> read_all(const WeightSource& weights, const std::string& name) {
  const int64_t count = weights.view(name).num_elements();
  std::vector<float> values(static_cast<size_t>(count));
  weights.read_float(name, 0, count, values.data());
  return values;
}

class TinyModelTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TinyModelTest, TensorsEqualGoldenValues) {
  const json expected = read_json(golden("gguf_models.json"))[GetParam()];
  const ModelFiles model = open_model(golden(std::string(GetParam()) + ".gguf").string());
  EXPECT_EQ(model.kind, ModelKind::transformer);
  EXPECT_EQ(model.weights->names().size(), expected.size());
  for (const auto& [name, tensor] : expected.items()) {
    ASSERT_TRUE(model.weights->contains(name)) << name;
    EXPECT_EQ(json(model.weights->view(name).shape), tensor["shape"]) << name;
    const std::vector<float> values = read_all(*model.weights, name);
    Sha256 digest;
    digest.update(std::as_bytes(std::span(values)));
    EXPECT_EQ(digest.hex_digest(), tensor["sha256"]) << name;
  }
}

// Any range of rows gives the same numbers as the whole.
TEST_P(TinyModelTest, RangesOfRows) {
  const ModelFiles model = open_model(golden(std::string(GetParam()) + ".gguf").string());
  for (const std::string& name : model.weights->names()) {
    const std::vector<float> whole = read_all(*model.weights, name);
    const TensorView view = model.weights->view(name);
    const int64_t row = view.row_elements(), rows = view.num_elements() / row;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{1, rows}, {0, rows / 2}, {rows / 3, rows / 3 + 1}, {rows, rows}}) {
      std::vector<float> part(static_cast<size_t>((end - begin) * row) + 1, -7.5F);
      model.weights->read_float(name, begin * row, end * row, part.data());
      EXPECT_TRUE(std::equal(part.begin(), part.end() - 1, whole.begin() + begin * row)) << name;
      EXPECT_EQ(part.back(), -7.5F) << name;
    }
    std::vector<float> out(whole.size() + static_cast<size_t>(row));
    EXPECT_THROW(model.weights->read_float(name, 0, view.num_elements() + row, out.data()), ValueError) << name;
    EXPECT_THROW(model.weights->read_float(name, -row, row, out.data()), ValueError) << name;
    if (row > 1) {
      EXPECT_THROW(model.weights->read_float(name, 0, row + 1, out.data()), ValueError) << name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, TinyModelTest, ::testing::Values("tiny_llama", "tiny_qwen2"),
                         [](const auto& info) { return std::string(info.param); });

TEST(GgufModelTest, Configs) {
  const json llama = open_model(golden("tiny_llama.gguf").string()).config;
  EXPECT_EQ(llama, json::parse(R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 263,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, "hidden_act": "silu",
    "tie_word_embeddings": false, "attention_bias": true, "mlp_bias": false, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32"})"));
  const ModelFiles qwen2 = open_model(golden("tiny_qwen2.gguf").string());
  EXPECT_EQ(qwen2.config["architectures"][0], "Qwen2ForCausalLM");
  EXPECT_EQ(qwen2.config["tie_word_embeddings"], true);
  EXPECT_TRUE(qwen2.config["rope_scaling"].is_null());
  EXPECT_EQ(qwen2.generation_config["eos_token_id"], json::array({0, 1}));
}

TEST(GgufModelTest, PlainTensorsNeedNoConversion) {
  const ModelFiles llama = open_model(golden("tiny_llama.gguf").string());
  EXPECT_TRUE(llama.weights->is_plain("model.norm.weight"));
  EXPECT_TRUE(llama.weights->is_plain("model.layers.0.self_attn.v_proj.weight"));
  EXPECT_TRUE(llama.weights->is_plain("model.layers.0.mlp.gate_proj.weight"));
  EXPECT_FALSE(llama.weights->is_plain("model.embed_tokens.weight"));             // quantised
  EXPECT_FALSE(llama.weights->is_plain("model.layers.0.self_attn.q_proj.bias"));  // reordered
  EXPECT_FALSE(llama.weights->is_plain("none"));
  EXPECT_TRUE(open_model(golden("tiny_qwen2.gguf").string()).weights->is_plain("model.layers.0.self_attn.q_proj.bias"));
}

TEST(GgufModelTest, Names) {
  EXPECT_EQ(hugging_face_name("blk.12.ffn_down.weight", "x"), "model.layers.12.mlp.down_proj.weight");
  EXPECT_EQ(hugging_face_name("rope_freqs.weight", "x"), "");
  for (const char* wrong : {"blk.0.ffn_gate_exps.weight", "blk.0.attn_q_norm.weight", "blk.x.attn_q.weight", "blk..attn_q.weight",
                            "blk.0.attn_q.scale", "blk.0", "blk.", "blk.0.attn_q", "position_embd.weight", ""}) {
    EXPECT_THAT(error_of<DataError>([&] { hugging_face_name(wrong, "file"); }),
                HasSubstr(std::string("file: tensor '") + wrong + "' is not known"));
  }
}

class GgufRefusedTest : public ::testing::Test {
 protected:
  ModelFiles open(const GgufBuilder& builder) {
    write_text(path_, builder.build());
    return open_model(path_.string());
  }
  std::string error_for(const GgufBuilder& builder) {
    return error_of<DataError>([&] { open(builder); });
  }
  TemporaryDirectory directory_;
  fs::path path_ = directory_ / "model.gguf";
};

TEST_F(GgufRefusedTest, TheTinyOneItselfIsFine) {
  const ModelFiles model = open(tiny_llama());
  EXPECT_FALSE(model.tokenizer.has_value());
  EXPECT_EQ(model.config["head_dim"], 2);
  EXPECT_EQ(model.config["num_key_value_heads"], 2);
  EXPECT_EQ(model.config["rope_theta"], 10000.0);
  EXPECT_EQ(open_model(directory_.path().string()).path, path_);
  write_text(directory_ / "other.gguf", "x");
  EXPECT_THAT(error_of<DataError>([&] { open_model(directory_.path().string()); }), HasSubstr("several GGUF files"));
}

// Each of eos, eot and eom ends a text, and so do the pieces by which llama.cpp knows an end.
TEST_F(GgufRefusedTest, StopIds) {
  const auto with_tokens = [](const std::vector<std::string>& tokens) {
    return tiny_llama().strings("tokenizer.ggml.tokens", tokens).size("tokenizer.ggml.eos_token_id", 2);
  };
  const auto ids_of = [&](const GgufBuilder& builder) { return open(builder).generation_config["eos_token_id"]; };
  const std::vector<std::string> plain = {"a", "b", "c", "d"};
  EXPECT_EQ(ids_of(with_tokens(plain)), 2);
  EXPECT_EQ(ids_of(with_tokens(plain).size("tokenizer.ggml.eot_token_id", 3).size("tokenizer.ggml.eom_token_id", 1)),
            json::array({1, 2, 3}));
  EXPECT_EQ(ids_of(with_tokens({"<|endoftext|>", "<|im_start|>", "<|im_end|>", "d"})), json::array({0, 2}));
  EXPECT_FALSE(open(tiny_llama()).generation_config.contains("eos_token_id"));
  EXPECT_THAT(error_for(with_tokens(plain).size("tokenizer.ggml.eom_token_id", 4)),
              HasSubstr("tokenizer.ggml.eom_token_id is 4, it must be an id of the vocabulary of 4 tokens"));
}

TEST_F(GgufRefusedTest, Architectures) {
  EXPECT_THAT(error_for(GgufBuilder().string("general.architecture", "mamba")),
              HasSubstr("architecture 'mamba' is not supported: llama and qwen2 are"));
  EXPECT_THAT(error_for(GgufBuilder()), HasSubstr("'general.architecture' is missing"));
  EXPECT_THAT(error_for(tiny_llama().size("split.count", 3)), HasSubstr("one of 3 parts"));
}

TEST_F(GgufRefusedTest, KeysThatChangeTheResult) {
  EXPECT_THAT(error_for(tiny_llama().size("llama.expert_count", 8)), HasSubstr("'llama.expert_count' is not supported"));
  EXPECT_NO_THROW(open(tiny_llama().size("llama.expert_count", 0)));
  EXPECT_THAT(error_for(tiny_llama().number("llama.logit_scale", 0.5F)), HasSubstr("'llama.logit_scale' is not supported"));
  EXPECT_THAT(error_for(tiny_llama().flag("llama.attention.causal", false)), HasSubstr("attention.causal is false"));
  EXPECT_THAT(error_for(tiny_llama().size("llama.rope.dimension_count", 1)),
              HasSubstr("llama.rope.dimension_count is 1, the heads' width is 2"));
  EXPECT_THAT(error_for(tiny_llama().integers("llama.attention.head_count_kv", {1, 2})), HasSubstr("differs between layers"));
  EXPECT_EQ(open(tiny_llama().integers("llama.attention.head_count_kv", {1, 1})).config["num_key_value_heads"], 1);
}

TEST_F(GgufRefusedTest, WrongSizes) {
  GgufBuilder no_layers;
  no_layers.string("general.architecture", "llama").size("llama.embedding_length", 4).tensor("token_embd.weight", {4, 2}, 0, 32);
  EXPECT_THAT(error_for(no_layers), HasSubstr("'llama.attention.head_count' is missing"));
  EXPECT_THAT(error_for(GgufBuilder().string("general.architecture", "llama")), HasSubstr("'token_embd.weight' is missing"));
  EXPECT_THAT(error_for(tiny_llama().size("llama.attention.head_count_kv", 0)),
              HasSubstr("'llama.attention.head_count_kv' is 0, which is no size"));
  EXPECT_THAT(error_for(tiny_llama().tensor("blk.0.attn_q.weight", {4, 6}, 0, 96)),
              HasSubstr("has 6 rows of type F32, which do not divide into 2 heads"));
  EXPECT_THAT(error_for(tiny_llama().tensor("blk.0.attn_q.bias", {32}, 8, 34)), HasSubstr("has 32 rows of type Q8_0"));
  EXPECT_THAT(error_for(tiny_llama().tensor("blk.0.ssm_in.weight", {4}, 0, 16)), HasSubstr("tensor 'blk.0.ssm_in.weight' is not known"));
}

TEST_F(GgufRefusedTest, RotaryScaling) {
  const auto scaled = [](const char* type) {
    return tiny_llama().string("llama.rope.scaling.type", type).number("llama.rope.scaling.factor", 4.0F);
  };
  EXPECT_EQ(open(scaled("linear")).config["rope_scaling"], json::parse(R"({"rope_type": "linear", "factor": 4.0})"));
  EXPECT_EQ(open(scaled("yarn").size("llama.rope.scaling.original_context_length", 8)).config["rope_scaling"],
            json::parse(R"({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8})"));
  EXPECT_TRUE(open(scaled("none")).config["rope_scaling"].is_null());
  EXPECT_EQ(open(tiny_llama().number("llama.rope.scale_linear", 2.0F)).config["rope_scaling"]["factor"], 2.0);
  EXPECT_THAT(error_for(scaled("longrope")), HasSubstr("rope.scaling.type = 'longrope' is not supported: none, linear and yarn are"));

  const auto factors = [](std::vector<float> values) {
    std::string bytes;
    for (const float value : values) bytes += GgufBuilder::raw(value);
    return tiny_llama().tensor("rope_freqs.weight", {values.size()}, 0, bytes, 64);
  };
  EXPECT_TRUE(open(factors({1.0F})).config["rope_scaling"].is_null());
  EXPECT_THAT(error_for(factors({2.0F})), HasSubstr("rope_freqs.weight is not what Llama 3's rule gives"));
  EXPECT_THAT(error_for(factors({1.0F, 2.0F})), HasSubstr("rope_freqs.weight is not what Llama 3's rule gives"));
}

// What a text uses of them decides, as with a Hugging Face directory.
TEST_F(GgufRefusedTest, MoreTokensThanRowsAreNoFault) {
  GgufBuilder builder = tiny_llama();
  builder.string("tokenizer.ggml.model", "gpt2")
      .strings("tokenizer.ggml.tokens", {"a", "b", "c", "d", "e"})
      .strings("tokenizer.ggml.merges", {});
  EXPECT_EQ(open(builder).config["vocab_size"], 4);
}

}  // namespace
}  // namespace distil_xlstm::io
