// No command changes a weight that it does not train: bytes before and after.
#include <gtest/gtest.h>

#include <map>

#include "distill/alignment.h"
#include "eval/perplexity.h"
#include "generate/generator.h"
#include "generate/synthesize.h"
#include "io/model_files.h"
#include "student/paper/student.h"
#include "teacher/teacher.h"
#include "train/micro_batch.h"

namespace distil_xlstm {
namespace {

constexpr int64_t kVocabulary = 512;

const Tokenizer& tokenizer() {
  static const Tokenizer instance(*io::open_model("stories260K").tokenizer);
  return instance;
}

json config_of(const std::string& family, const json& more) {
  json config = {{"model_type", family},       {"vocab_size", kVocabulary}, {"hidden_size", 16},        {"intermediate_size", 24},
                 {"num_hidden_layers", 2},     {"num_attention_heads", 4},  {"num_key_value_heads", 2}, {"head_dim", 8},
                 {"tie_word_embeddings", true}};
  config.update(more);
  return config;
}

class Watched {
 public:
  explicit Watched(const nn::LanguageModel& model) : model_(model) {
    model.for_each_weight([&](const std::string& name, const Tensor& weight) { before_[name] = weight.detach().clone(); });
  }
  void expect_unchanged(const std::string& after) const {
    model_.for_each_weight([&](const std::string& name, const Tensor& weight) {
      EXPECT_TRUE(at::equal(weight, before_.at(name))) << name << " has changed after " << after;
    });
  }

 private:
  const nn::LanguageModel& model_;
  std::map<std::string, Tensor> before_;
};

void evaluate(nn::LanguageModel& model, nn::LanguageModel* teacher) {
  const std::vector<eval::EvalDocument> documents = {{.tokens = {1, 5, 9, 300, 7, 5, 2}, .size_bytes = 9},
                                                     {.tokens = {1, 4}, .size_bytes = 2}};
  for (const bool carry_state : {false, true}) {
    for (const int64_t batch_size : {1, 8})
      (void)eval::perplexity(model, teacher, documents, {.context_length = 3, .batch_size = batch_size, .carry_state = carry_state});
  }
}

void write_text(nn::LanguageModel& model) {
  generate::GenerateOptions options;
  options.max_new_tokens = 8;
  (void)generate::generate(model, tokenizer(), {1, 300, 301}, options);
  generate::SynthesizeOptions synthesis;
  synthesis.prompt = {1};
  synthesis.max_document_tokens = 6;
  for (const int64_t batch_size : {1, 5}) {
    synthesis.batch_size = batch_size;
    (void)generate::synthesize_batch(model, synthesis, 0);
  }
}

void train_on(teacher::Teacher& teacher, student::Student& student) {
  teacher::LiveTeacher source(teacher);
  const distill::Objective objective({}, teacher.num_layers(), student.shape().num_layers());
  train::MicroBatches micro_batches(source, student, objective);
  for (const int64_t rows : {1, 4}) {
    data::Batch batch{.num_rows = rows, .context_length = 3, .num_targets = rows * 3};
    batch.tokens.assign(static_cast<size_t>(rows * 3), 7);
    batch.targets.assign(static_cast<size_t>(rows * 3), 9);
    batch.mask.assign(static_cast<size_t>(rows * 3), 1);
    batch.is_start.assign(static_cast<size_t>(rows * 3), 0);
    train::GradientSettings settings;
    settings.head = {.ce_weight = 0.5, .kd_weight = 0.5};
    settings.measured = {true};
    settings.hidden_scales = {0.1};
    (void)micro_batches.run({batch}, settings);
  }
}

TEST(Weights, StayAsTheyAreInEveryCommand) {
  const std::vector<std::pair<std::string, json>> families = {{"llama", json::object()},
                                                              {"llama", {{"attention_bias", true}, {"mlp_bias", true}}},
                                                              {"qwen2", json::object()},
                                                              {"qwen3", {{"attention_bias", true}}}};
  for (const auto& [family, more] : families) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      at::manual_seed(3);
      const auto teacher = teacher::random_teacher(config_of(family, more), at::kCPU, {type}, at::kCPU, 0.25);
      student::StudentConfig config;
      config.vocab_size = kVocabulary;
      config.embedding_dim = 16;
      config.num_blocks = 2;
      config.context_length = 16;
      config.slstm_at = {1};
      config.tie_weights = true;
      const auto student = student::PaperStudent::create(config, teacher->embedding_weight(), teacher->head_weight(), 1, at::kCPU);
      student->set_compute_dtype(type);
      const Watched watched_teacher(*teacher), watched_student(*student);
      const auto expect_unchanged = [&](const std::string& after) {
        watched_teacher.expect_unchanged(family + ": " + after);
        watched_student.expect_unchanged(family + ": " + after);
      };
      evaluate(*teacher, nullptr);
      evaluate(*student, teacher.get());
      expect_unchanged("eval");
      write_text(*teacher);
      write_text(*student);
      expect_unchanged("generate and synthesize");
      train_on(*teacher, *student);
      expect_unchanged("a training step's forward and backward");
    }
  }
}

}  // namespace
}  // namespace distil_xlstm
