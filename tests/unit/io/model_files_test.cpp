// What a name or a path resolves to, and what is said when it is nothing.
#include "io/model_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "io/builtin.h"
#include "io/safetensors.h"
#include "unit/io/io_testing.h"

namespace distil_xlstm::io {
namespace {

using ::testing::HasSubstr;

// Sets an environment variable for one test.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const std::string& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    ::setenv(name, value.c_str(), 1);
  }
  ~ScopedVariable() { old_ ? ::setenv(name_, old_->c_str(), 1) : ::unsetenv(name_); }

 private:
  const char* name_;
  std::optional<std::string> old_;
};

void write_floats(const fs::path& path, const std::map<std::string, std::vector<float>>& tensors) {
  std::vector<TensorView> views;
  views.reserve(tensors.size());
  for (const auto& [name, values] : tensors) {
    views.push_back({name, DType::f32, {static_cast<int64_t>(values.size())}, std::as_bytes(std::span(values))});
  }
  write_safetensors(path, views);
}

std::vector<float> read_all(const WeightSource& weights, const std::string& name) {
  std::vector<float> values(static_cast<size_t>(weights.view(name).num_elements()));
  weights.read_float(name, 0, static_cast<int64_t>(values.size()), values.data());
  return values;
}

class ModelFilesTest : public ::testing::Test {
 protected:
  // A run as the trainer leaves it: two checkpoints, `last` = 200, the head tied to the embedding unless `head`.
  fs::path make_run(bool head) {
    const fs::path run = directory_ / "run";
    for (const char* step : {"step-00000100", "step-00000200"}) {
      const fs::path checkpoint = run / "checkpoints" / step;
      fs::create_directories(checkpoint);
      write_floats(checkpoint / "model.safetensors", {{"blocks.0.weight", {std::string(step) == "step-00000100" ? 1.0F : 2.0F}}});
      write_text(checkpoint / "config.json", R"({"mlstm_block": {}, "distil_xlstm": {"version": 1}})");
      write_text(checkpoint / "optimizer.safetensors", "not read");
    }
    write_text(run / "checkpoints" / "last", "step-00000200\n");
    write_text(run / "run.json", "{}");
    std::map<std::string, std::vector<float>> frozen = {{"token_embedding.weight", {3.0F, 4.0F}}};
    if (head) frozen["lm_head.weight"] = {5.0F};
    write_floats(run / "frozen.safetensors", frozen);
    write_text(run / "tokenizer.json", R"({"from": "run"})");
    write_text(run / "tokenizer_config.json", R"({"bos_token": {"content": "<s>", "lstrip": false}, "add_bos_token": true})");
    write_text(run / "chat_template.jinja", "{{ messages }}");
    return run;
  }

  TemporaryDirectory directory_;
};

TEST_F(ModelFilesTest, BuiltinStoriesIsARealModel) {
  const ModelFiles model = open_model("stories260K");
  EXPECT_EQ(model.kind, ModelKind::transformer);
  EXPECT_EQ(model.name, "stories260K");
  EXPECT_EQ(model.config["model_type"], "llama");
  EXPECT_EQ(model.generation_config["bos_token_id"], 1);
  EXPECT_EQ(model.weights->view("model.embed_tokens.weight").shape, (std::vector<int64_t>{512, 64}));
  EXPECT_FALSE(model.weights->contains("lm_head.weight"));
  ASSERT_TRUE(model.tokenizer.has_value());
  EXPECT_EQ(model.tokenizer->tokenizer_config["bos_token"], "<s>");
  const std::vector<float> norm = read_all(*model.weights, "model.norm.weight");
  EXPECT_EQ(norm.size(), 64U);
  EXPECT_NE(norm[0], 0.0F);
}

TEST_F(ModelFilesTest, RunGivesItsLastCheckpointThenItsBest) {
  const fs::path run = make_run(false);
  ModelFiles model = open_model(run.string() + "/");
  EXPECT_EQ(model.kind, ModelKind::student);
  EXPECT_EQ(model.path.filename(), "step-00000200");
  EXPECT_EQ(read_all(*model.weights, "blocks.0.weight"), std::vector<float>{2.0F});
  write_text(run / "checkpoints" / "best", "step-00000100");
  EXPECT_EQ(open_model(run.string()).path.filename(), "step-00000100");
  EXPECT_EQ(open_model((run / "checkpoints").string()).path.filename(), "step-00000100");
  EXPECT_EQ(open_model((run / "checkpoints" / "last").string()).path.filename(), "step-00000200");
}

TEST_F(ModelFilesTest, CheckpointSeesFrozenWeightsAndTokenizerOfItsRun) {
  const fs::path checkpoint = make_run(false) / "checkpoints" / "step-00000100";
  const ModelFiles model = open_model(checkpoint.string());
  EXPECT_EQ(read_all(*model.weights, "token_embedding.weight"), (std::vector<float>{3.0F, 4.0F}));
  EXPECT_EQ(model.weights->names().size(), 2U);
  ASSERT_TRUE(model.tokenizer.has_value());
  EXPECT_EQ(model.tokenizer->tokenizer_json, R"({"from": "run"})");
  EXPECT_EQ(model.tokenizer->tokenizer_config["bos_token"], "<s>");
  EXPECT_EQ(model.tokenizer->tokenizer_config["chat_template"], "{{ messages }}");
  EXPECT_EQ(model.generation_config, json::object());
  write_text(checkpoint.parent_path().parent_path() / "generation_config.json", R"({"eos_token_id": [1, 2]})");
  EXPECT_EQ(open_model(checkpoint.string()).generation_config["eos_token_id"], json::array({1, 2}));
  write_text(checkpoint / "tokenizer.json", R"({"from": "checkpoint"})");
  EXPECT_EQ(open_model(checkpoint.string()).tokenizer->tokenizer_json, R"({"from": "checkpoint"})");
}

TEST_F(ModelFilesTest, TiedHeadEqualsTheEmbedding) {
  const ModelFiles tied = open_model(make_run(false).string());
  EXPECT_TRUE(tied.weights->contains("lm_head.weight"));
  EXPECT_TRUE(tied.weights->is_plain("lm_head.weight"));
  EXPECT_EQ(tied.weights->view("lm_head.weight").name, "lm_head.weight");
  EXPECT_EQ(tied.weights->view("lm_head.weight").bytes.data(), tied.weights->view("token_embedding.weight").bytes.data());
  EXPECT_EQ(read_all(*tied.weights, "lm_head.weight"), (std::vector<float>{3.0F, 4.0F}));
}

TEST_F(ModelFilesTest, UntiedHeadIsItsOwn) {
  const ModelFiles model = open_model(make_run(true).string());
  EXPECT_EQ(read_all(*model.weights, "lm_head.weight"), std::vector<float>{5.0F});
}

TEST_F(ModelFilesTest, AuthorsFormatIsAStudent) {
  write_floats(directory_ / "model.safetensors", {{"xlstm.embedding.weight", {1.0F}}});
  write_text(directory_ / "config.json", R"({"model_type": "xlstm", "xlstm_cfg": {}})");
  const ModelFiles model = open_model(directory_.path().string());
  EXPECT_EQ(model.kind, ModelKind::student);
  EXPECT_FALSE(model.tokenizer.has_value());
  EXPECT_FALSE(model.weights->contains("lm_head.weight"));
}

TEST_F(ModelFilesTest, FetchedRepositoryLiesInTheCache) {
  const ScopedVariable cache("DISTIL_XLSTM_CACHE", directory_.path().string());
  const fs::path main = directory_ / "models/org--tiny.model/main";
  const fs::path branch = directory_ / "models/org--tiny.model/refs--pr--1";
  for (const fs::path& place : {main, branch}) {
    fs::create_directories(place);
    write_floats(place / "model.safetensors", {{"x", {place == main ? 1.0F : 2.0F}}});
    write_text(place / "config.json", R"({"model_type": "llama"})");
  }
  EXPECT_EQ(read_all(*open_model("org/tiny.model").weights, "x"), std::vector<float>{1.0F});
  EXPECT_EQ(read_all(*open_model("org/tiny.model@refs/pr/1").weights, "x"), std::vector<float>{2.0F});
}

TEST_F(ModelFilesTest, NamesThatAreNothing) {
  const ScopedVariable cache("DISTIL_XLSTM_CACHE", directory_.path().string());
  EXPECT_THAT(error_of<ConfigError>([] { open_model(""); }), HasSubstr("the name is empty"));
  EXPECT_THAT(error_of<ConfigError>([] { open_model("stories260k"); }), HasSubstr("did you mean 'stories260K'?"));
  EXPECT_THAT(error_of<ConfigError>([] { open_model("smollm2-135m-instruct"); }), HasSubstr("distil-xlstm fetch smollm2-135m-instruct"));
  EXPECT_THAT(error_of<ConfigError>([] { open_model("org/none@v1"); }), HasSubstr("distil-xlstm fetch org/none@v1"));
  EXPECT_THAT(error_of<ConfigError>([] { open_model("no/such/path"); }), HasSubstr("no such path"));
  EXPECT_THAT(error_of<ConfigError>([] { open_model("../x"); }), HasSubstr("no such path"));
  EXPECT_THAT(error_of<ConfigError>([] { open_model(std::string(5000, 'a')); }), HasSubstr("no such path"));
}

TEST_F(ModelFilesTest, BrokenDirectories) {
  const std::string path = directory_.path().string();
  EXPECT_THAT(error_of<DataError>([&] { open_model(path); }), HasSubstr("has config.json"));
  write_text(directory_ / "config.json", "[]");
  EXPECT_THAT(error_of<DataError>([&] { open_model(path); }), HasSubstr("config.json: not a JSON object"));
  write_text(directory_ / "config.json", R"({"model_type": "llama"})");
  EXPECT_THAT(error_of<DataError>([&] { open_model(path); }), HasSubstr("no model.safetensors"));
  write_text(directory_ / "pytorch_model.bin", "x");
  EXPECT_THAT(error_of<DataError>([&] { open_model(path); }), HasSubstr("pytorch_model.bin is not read"));
  write_text(directory_ / "plain.txt", "x");
  EXPECT_THAT(error_of<DataError>([&] { open_model(path + "/plain.txt"); }), HasSubstr("not a model"));
}

TEST_F(ModelFilesTest, BrokenRuns) {
  const fs::path run = make_run(false);
  write_text(run / "checkpoints" / "last", "../../elsewhere");
  EXPECT_THAT(error_of<DataError>([&] { open_model(run.string()); }), HasSubstr("is no checkpoint beside it"));
  fs::remove(run / "checkpoints" / "last");
  EXPECT_THAT(error_of<DataError>([&] { open_model(run.string()); }), HasSubstr("no checkpoint has been saved here yet"));
}

TEST_F(ModelFilesTest, ChatTemplateList) {
  write_floats(directory_ / "model.safetensors", {{"x", {1.0F}}});
  write_text(directory_ / "config.json", "{}");
  write_text(directory_ / "tokenizer.json", "{}");
  write_text(directory_ / "special_tokens_map.json", R"({"eos_token": "</s>", "pad_token": {"content": "<pad>"}})");
  write_text(directory_ / "tokenizer_config.json",
             R"({"eos_token": "<end>", "chat_template": [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]})");
  const json config = open_model(directory_.path().string()).tokenizer->tokenizer_config;
  EXPECT_EQ(config["chat_template"].size(), 2U);  // which of them is for a conversation, its tools say
  EXPECT_EQ(config["eos_token"], "</s>");         // as transformers: the map goes first where the configuration lists no added tokens
  EXPECT_EQ(config["pad_token"], "<pad>");
}

TEST_F(ModelFilesTest, TemplatesInFilesOfTheirOwn) {
  write_floats(directory_ / "model.safetensors", {{"x", {1.0F}}});
  write_text(directory_ / "config.json", "{}");
  write_text(directory_ / "tokenizer.json", "{}");
  write_text(directory_ / "tokenizer_config.json", R"({"chat_template": "old"})");
  write_text(directory_ / "chat_template.jinja", "plain");
  const auto chat_template = [&] { return open_model(directory_.path().string()).tokenizer->tokenizer_config["chat_template"]; };
  EXPECT_EQ(chat_template(), "plain");
  fs::create_directories(directory_ / "additional_chat_templates");
  write_text(directory_ / "additional_chat_templates" / "tool_use.jinja", "tools");
  write_text(directory_ / "additional_chat_templates" / "rag.jinja", "rag");
  EXPECT_EQ(chat_template(), json::parse(R"([{"name": "default", "template": "plain"}, {"name": "rag", "template": "rag"},
                                             {"name": "tool_use", "template": "tools"}])"));
}

TEST(RepositoryNameTest, TakesNamesApart) {
  const std::optional<RepositoryName> name = parse_repository_name("HuggingFaceTB/SmolLM2-135M@v1.0");
  ASSERT_TRUE(name.has_value());
  EXPECT_EQ(name->organisation, "HuggingFaceTB");
  EXPECT_EQ(name->name, "SmolLM2-135M");
  EXPECT_EQ(name->revision, "v1.0");
  EXPECT_EQ(parse_repository_name("a/b")->revision, "main");
  for (const char* wrong :
       {"a", "a/", "/b", "a/b/c", "a/..", "../b", "a/b@", "a/b@../x", "a/b@x/../y", "a/b@x//y", "a b/c", "a/.hidden", ""}) {
    EXPECT_FALSE(parse_repository_name(wrong).has_value()) << wrong;
  }
}

}  // namespace
}  // namespace distil_xlstm::io
