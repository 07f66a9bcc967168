// The part of `selfcheck` that decodes: what `generate` runs, beside what `eval` and training run.
#include <map>

#include "measure/operations.h"
#include "measure/selfcheck.h"
#include "ops/device.h"
#include "ops/head_loss.h"
#include "student/paper/student.h"
#include "teacher/teacher.h"

namespace distil_xlstm::measure {
namespace {

constexpr int64_t kVocabulary = 50, kWidth = 32, kTokens = 12, kPrompt = 4;

// Families with what changes the course of a product: biases, norms of heads, a tied head.
const std::vector<std::pair<const char*, json>>& families() {
  static const json sizes = {
      {"vocab_size", kVocabulary}, {"hidden_size", kWidth},    {"intermediate_size", 48},       {"num_hidden_layers", 2},
      {"num_attention_heads", 4},  {"num_key_value_heads", 2}, {"max_position_embeddings", 64}, {"head_dim", 16}};
  const auto with = [](json keys) {
    keys.update(sizes);
    return keys;
  };
  static const std::vector<std::pair<const char*, json>> all = {
      {"llama", with({{"model_type", "llama"}, {"tie_word_embeddings", true}})},
      {"llama with biases", with({{"model_type", "llama"}, {"attention_bias", true}, {"mlp_bias", true}})},
      {"qwen2", with({{"model_type", "qwen2"}})},
      {"qwen3", with({{"model_type", "qwen3"}})},
      {"qwen3 with biases", with({{"model_type", "qwen3"}, {"attention_bias", true}})}};
  return all;
}

// The same weights each time for one seed.
std::unique_ptr<teacher::Teacher> small_teacher(const json& config, at::Device device, at::ScalarType type, uint64_t seed) {
  at::manual_seed(seed);
  return teacher::random_teacher(config, device, {type}, at::kCPU, /*deviation=*/0.25);
}

enum class Mixers { slstm, mlstm, both };

std::unique_ptr<student::Student> small_student(Mixers mixers, at::Device device, at::ScalarType type, uint64_t seed) {
  student::StudentConfig config;
  config.vocab_size = kVocabulary;
  config.embedding_dim = kWidth;
  config.num_blocks = 2;
  config.context_length = 64;
  config.chunk_size = 8;
  if (mixers != Mixers::mlstm) config.slstm_at = mixers == Mixers::both ? std::vector<int64_t>{1} : std::vector<int64_t>{0, 1};
  const auto parameter_type = type == at::kDouble ? at::kDouble : at::kFloat;
  at::manual_seed(seed);
  const Tensor embedding = at::randn({kVocabulary, kWidth}).to(device, parameter_type);
  auto student = student::PaperStudent::create(config, embedding, embedding, seed, device, parameter_type);
  student->set_compute_dtype(type);
  const at::NoGradGuard no_grad;
  for (const auto& [name, parameter] : student->parameters()) Tensor(parameter).add_(at::randn(parameter.sizes()).mul_(0.1).to(parameter));
  return student;
}

Tensor decode(nn::LanguageModel& model, const Tensor& tokens_BS, int64_t prompt) {
  const Tensor tokens = tokens_BS.to(model.device());
  const auto state = model.new_state(tokens.size(0), tokens.size(1));
  std::vector<Tensor> parts = {model.forward_step(tokens.slice(1, 0, prompt), *state)};
  for (int64_t at = prompt; at < tokens.size(1); ++at) parts.push_back(model.forward_step(tokens.slice(1, at, at + 1), *state));
  return model.logits(at::cat(parts, 1));
}

// Of one row and of several, from a prompt of one token and of several.
double decoding_error(nn::LanguageModel& model, nn::LanguageModel& exact) {
  const at::NoGradGuard no_grad;
  double worst = 0;
  for (const int64_t rows : {1, 3}) {
    const Tensor tokens = at::randint(kVocabulary, {rows, kTokens}, at::kLong);
    const Tensor expected = exact.forward_hidden(tokens).matmul(exact.head_weight().t());
    for (const int64_t prompt : {int64_t{1}, kPrompt}) worst = largest_error({worst, relative(decode(model, tokens, prompt), expected)});
  }
  return worst;
}

std::map<std::string, Tensor> copied_weights(const nn::LanguageModel& model) {
  std::map<std::string, Tensor> copies;
  model.for_each_weight([&](const std::string& name, const Tensor& weight) { copies[name] = weight.detach().clone(); });
  return copies;
}

// How many weights are not what they were.
double num_changed(const nn::LanguageModel& model, const std::map<std::string, Tensor>& before) {
  double changed = 0;
  model.for_each_weight([&](const std::string& name, const Tensor& weight) { changed += at::equal(weight, before.at(name)) ? 0 : 1; });
  return changed;
}

// Of a teacher of every family and a student, after decoding and after the forward and backward of a training step.
double changed_weights(at::Device device, at::ScalarType type, uint64_t seed) {
  double changed = 0;
  for (const auto& [name, config] : families()) {
    const auto teacher = small_teacher(config, device, type, seed);
    const auto student = small_student(Mixers::both, device, type, seed);
    const auto teacher_before = copied_weights(*teacher), student_before = copied_weights(*student);
    for (const int64_t rows : {1, 3}) {
      const Tensor tokens = at::randint(kVocabulary, {rows, kTokens + 1}, at::kLong).to(device);
      for (nn::LanguageModel* model : {static_cast<nn::LanguageModel*>(teacher.get()), static_cast<nn::LanguageModel*>(student.get())})
        decode(*model, tokens, 1);
      const Tensor inputs = tokens.slice(1, 0, kTokens), targets = tokens.slice(1, 1, kTokens + 1).contiguous();
      const auto seen = teacher->forward(inputs, {}, {.collect_mean = true});
      const auto out = student->forward(inputs, {}, {.compute_dtype = type}).last_hidden_BSD;
      const auto losses = ops::head_losses(out.detach(), student->head_weight(), seen.last_hidden_BSD, teacher->head_weight(), targets,
                                           at::ones_like(targets, at::kByte), {.ce_weight = 0.5, .kd_weight = 0.5}, 1.0);
      out.backward(losses.grad_student_hidden_BSD);
    }
    changed += num_changed(*teacher, teacher_before) + num_changed(*student, student_before);
  }
  return changed;
}

}  // namespace

std::vector<Check> decoding_checks(at::Device device) {
  std::vector<Check> checks;
  const auto draw_seed = [] { return static_cast<uint64_t>(at::randint(1 << 30, {1}, at::kLong).item<int64_t>()); };
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const std::string precision = ops::precision_name(type);
    const auto add = [&](std::string_view model, double bound, const std::function<double(uint64_t)>& error) {
      checks.push_back({fmt::format("{} in {}: token by token = whole text", model, precision), bound,
                        [=] { return best_of_three([&] { return error(draw_seed()); }); }});
    };
    for (const auto& [name, config] : families()) {
      add(name, type == at::kFloat ? 1e-5 : 2e-2, [=, &config = config](uint64_t seed) {
        return decoding_error(*small_teacher(config, device, type, seed), *small_teacher(config, at::kCPU, at::kDouble, seed));
      });
    }
    for (const auto& [name, mixers] :
         {std::pair{"sLSTM student", Mixers::slstm}, {"mLSTM student", Mixers::mlstm}, {"student", Mixers::both}}) {
      add(name, type == at::kFloat ? 1e-4 : 5e-2, [=, mixers = mixers](uint64_t seed) {
        return decoding_error(*small_student(mixers, device, type, seed), *small_student(mixers, at::kCPU, at::kDouble, seed));
      });
    }
    checks.push_back({fmt::format("no weight changes in decoding and training in {}", precision), 0.0,
                      [=] { return changed_weights(device, type, draw_seed()); }});
  }
  return checks;
}

}  // namespace distil_xlstm::measure
