#include "eval/loglikelihood.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/random.h"
#include "student/registry.h"
#include "support/devices.h"
#include "support/toy_model.h"
#include "teacher/teacher.h"
#include "unit/student/student_testing.h"

namespace distil_xlstm::eval {
namespace {

using ::testing::HasSubstr;

std::vector<int32_t> random_ids(Random& random, size_t count, int64_t vocabulary) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(vocabulary))));
  return ids;
}

// Items of several continuations behind one context, of one token and of many; contexts of all lengths, some of them short.
std::vector<Request> random_requests(int64_t vocabulary) {
  Random random(11);
  std::vector<Request> requests;
  for (const size_t context : {1, 2, 9, 30, 31, 33, 12, 9, 60}) {
    const auto ids = random_ids(random, context, vocabulary);
    for (size_t choices = 1 + random.below(4); choices > 0; --choices)
      requests.push_back({ids, random_ids(random, 1 + random.below(12), vocabulary)});
  }
  return requests;
}

// By the whole text of each request alone.
RequestScore direct_score(nn::LanguageModel& model, const Request& request, size_t max_length) {
  std::vector<int64_t> inputs(request.context.begin(), request.context.end());
  inputs.insert(inputs.end(), request.continuation.begin(), request.continuation.end() - 1);
  if (inputs.size() > max_length) inputs.erase(inputs.begin(), inputs.end() - static_cast<ptrdiff_t>(max_length));
  const Tensor hidden = model.forward_hidden(at::tensor(inputs, at::kLong).unsqueeze(0).to(model.device()));
  const Tensor logits = model.logits(hidden[0]).to(at::kCPU, at::kDouble);
  RequestScore score;
  for (size_t i = 0; i < request.continuation.size(); ++i) {
    const Tensor row = logits[static_cast<int64_t>(inputs.size() - request.continuation.size() + i)];
    score.log_likelihood += row.log_softmax(0)[request.continuation[i]].item<double>();
    score.is_greedy = score.is_greedy && row.argmax().item<int64_t>() == request.continuation[i];
  }
  return score;
}

void expect_direct_scores(nn::LanguageModel& model, const std::vector<Request>& requests, double tolerance) {
  for (const int64_t max_length : {2048, 25}) {
    std::vector<RequestScore> expected;
    for (const Request& request : requests) expected.push_back(direct_score(model, request, static_cast<size_t>(max_length)));
    for (const auto& [shares, batch_tokens] : {std::pair{true, 70}, {true, 4096}, {false, 1}, {false, 4096}}) {
      SCOPED_TRACE(fmt::format("{}, shares {}, batch of {}, at most {}", model.description(), shares, batch_tokens, max_length));
      size_t done = 0;
      const LoglikelihoodOptions options{.max_length = max_length, .batch_tokens = batch_tokens, .shares_contexts = shares};
      const auto scores = log_likelihoods(model, requests, options, [&](size_t now) { done = now; });
      ASSERT_EQ(scores.size(), requests.size());
      EXPECT_EQ(done, requests.size());
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_NEAR(scores[i].log_likelihood, expected[i].log_likelihood, tolerance * (1 + std::abs(expected[i].log_likelihood))) << i;
        EXPECT_EQ(scores[i].is_greedy, expected[i].is_greedy) << i;
      }
    }
  }
}

TEST(LogLikelihoods, CanBeReckonedByHand) {
  // After token 0: probabilities 1/2, 1/4, 1/4; after 1: 1/8, 1/8, 3/4; after 2: all the same.
  const double third = 1.0 / 3;
  const Tensor p = at::tensor({0.5, 0.25, 0.25, 0.125, 0.125, 0.75, third, third, third}, at::kFloat).reshape({3, 3});
  ToyModel model(p.log());
  const auto scores = log_likelihoods(model, std::vector<Request>{{{0}, {1}}, {{2, 0}, {1, 2}}, {{1}, {2}}, {{0}, {0, 0, 0}}}, {});
  const std::vector<double> expected = {0.25, 0.25 * 0.75, 0.75, 0.125};
  const std::vector<bool> greedy = {false, false, true, true};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(std::exp(scores[i].log_likelihood), expected[i], 1e-6);
    EXPECT_EQ(scores[i].is_greedy, greedy[i]) << i;
  }
}

json small_qwen2() {
  return {{"model_type", "qwen2"},         {"vocab_size", 37},         {"hidden_size", 24},        {"intermediate_size", 40},
          {"num_hidden_layers", 2},        {"num_attention_heads", 4}, {"num_key_value_heads", 2}, {"tie_word_embeddings", true},
          {"max_position_embeddings", 256}};
}

TEST(LogLikelihoods, EqualThoseOfEachRequestAloneForATeacher) {
  at::manual_seed(3);
  for (const at::Device device : testing::devices()) {
    const auto teacher = teacher::random_teacher(small_qwen2(), device, {at::kFloat}, at::kCPU, 0.4);
    expect_direct_scores(*teacher, random_requests(37), 1e-5);
  }
}

TEST(LogLikelihoods, EqualThoseOfEachRequestAloneForStudents) {
  const auto config = student::small_config();
  for (const at::Device device : testing::devices()) {
    const auto student = student::small_student(config, device, at::kFloat, 0.1);
    expect_direct_scores(*student, random_requests(config.vocab_size), 1e-5);
  }
}

TEST(LogLikelihoods, EqualThoseOfEachRequestAloneForAConvertedStudent) {
  at::manual_seed(7);
  const auto teacher = teacher::random_teacher(small_qwen2(), at::kCPU, {at::kFloat}, at::kCPU, 0.4);
  config::StudentSettings settings;
  settings.kind = "convert";
  settings.chunk_size = 5;
  for (const std::vector<std::string>& mixers : {std::vector<std::string>{"mlstm"}, {"slstm", "attention"}}) {
    settings.mixers = mixers;
    const auto shape = student::derive_shape(settings, teacher::teacher_shape(small_qwen2()), 32);
    const auto converted = shape->fresh({.device = at::kCPU,
                                         .parameter_dtype = at::kFloat,
                                         .embedding_VD = teacher->embedding_weight(),
                                         .head_VD = teacher->head_weight(),
                                         .teacher = teacher.get()},
                                        3);
    expect_direct_scores(*converted, random_requests(37), 1e-5);
  }
}

TEST(LogLikelihoods, RowsLeftOutAreAsIfTheyWereNotThere) {
  const Tensor logits = at::randn({6, 6});
  ToyModel model(logits), without(logits.narrow(0, 0, 4).narrow(1, 0, 4).contiguous());
  const std::vector<Request> requests = {{{1, 2}, {3, 0, 1}}, {{0}, {2}}};
  const auto scores = log_likelihoods(model, requests, {.left_out_rows = {4, 5}}), expected = log_likelihoods(without, requests, {});
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_NEAR(scores[i].log_likelihood, expected[i].log_likelihood, 1e-6);
    EXPECT_EQ(scores[i].is_greedy, expected[i].is_greedy);
  }
}

TEST(LogLikelihoods, RefusesWhatCannotBeScored) {
  Tensor bad = at::randn({5, 5});
  bad[4][2] = std::nan("");
  ToyModel model(at::randn({5, 5})), broken(bad);
  const auto error_of = [](nn::LanguageModel& asked, const Request& request) -> std::string {
    try {
      log_likelihoods(asked, std::vector{request}, {.max_length = 3, .model_name = "m"});
    } catch (const Error& error) {
      return error.what();
    }
    return "<no exception>";
  };
  EXPECT_THAT(error_of(model, {{1}, {1, 2, 3, 4}}), HasSubstr("a continuation of 4 tokens is longer than the 3 that m sees at once"));
  EXPECT_THAT(error_of(model, {{}, {1}}), HasSubstr("need a token each"));
  EXPECT_THAT(error_of(broken, {{1}, {4, 2}}), HasSubstr("m in fp32: 'lm_head.weight' holds values that are not finite"));
}

}  // namespace
}  // namespace distil_xlstm::eval
