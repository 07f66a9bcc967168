#include "eval/perplexity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/random.h"
#include "support/toy_model.h"

namespace distil_xlstm::eval {
namespace {

constexpr int64_t kVocabulary = 13;

EvalDocument document(int64_t num_tokens, uint64_t seed) {
  Random random(seed);
  EvalDocument result;
  for (int64_t i = 0; i < num_tokens; ++i) result.tokens.push_back(static_cast<int32_t>(random.below(kVocabulary)));
  result.size_bytes = 3 * num_tokens;
  return result;
}

// Sum of -log p of every token but the first, by the formula.
double direct_nats(const Tensor& logits_VV, const std::vector<EvalDocument>& documents) {
  const Tensor log_probability = logits_VV.to(at::kDouble).log_softmax(1);
  double nats = 0;
  for (const auto& text : documents) {
    for (size_t at = 1; at < text.tokens.size(); ++at) nats -= log_probability[text.tokens[at - 1]][text.tokens[at]].item<double>();
  }
  return nats;
}

TEST(PerplexityScorer, ScoresEveryTargetOnceAndInOrder) {
  ToyModel model(at::randn({kVocabulary, kVocabulary}));
  for (const int64_t num_tokens : {2, 3, 9, 10, 17, 40}) {
    const EvalDocument text = document(num_tokens, 5);
    for (const int64_t context : {1, 3, 8}) {
      for (int64_t stride = 1; stride <= context; ++stride) {
        std::vector<int32_t> scored;
        int64_t done = 0;
        const PerplexityScorer::Observers observers = {.targets =
                                                           [&](std::span<const int32_t> targets) {
                                                             EXPECT_LE(targets.size(),
                                                                       static_cast<size_t>(scored.empty() ? context : stride));
                                                             scored.insert(scored.end(), targets.begin(), targets.end());
                                                           },
                                                       .progress = [&](int64_t now) { done = now; }};
        PerplexityScorer scorer(model, nullptr, {.context_length = context, .stride = stride, .batch_size = 3}, observers);
        scorer.add(text);
        EXPECT_EQ(scorer.finish().target_tokens, num_tokens - 1);
        EXPECT_EQ(done, num_tokens - 1);
        EXPECT_EQ(scored, (std::vector<int32_t>{text.tokens.begin() + 1, text.tokens.end()})) << context << " " << stride;
      }
    }
  }
}

// What is scored early is what would have been scored once all is there, to the bit: the same windows in the same batches.
TEST(PerplexityScorer, PartsOfADocumentGiveTheBitsOfTheWhole) {
  ToyModel model(at::randn({kVocabulary, kVocabulary})), teacher(at::randn({kVocabulary, kVocabulary}));
  const std::vector<EvalDocument> documents = {document(37, 1), document(1, 2), document(0, 7), document(2, 3), document(64, 4)};
  Random random(17);
  for (const int64_t stride : {2, 5}) {
    const PerplexityOptions options = {.context_length = 5, .stride = stride, .batch_size = 3};
    const auto whole = perplexity(model, &teacher, documents, options);
    PerplexityScorer scorer(model, &teacher, options);
    for (const auto& text : documents) {
      for (size_t at = 0; at < text.tokens.size();) {
        const size_t part = std::min<size_t>(1 + random.below(9), text.tokens.size() - at);
        scorer.append(std::span(text.tokens).subspan(at, part));
        at += part;
      }
      scorer.end_document();
    }
    const auto parts = scorer.finish();
    EXPECT_EQ(parts.target_tokens, whole.target_tokens);
    EXPECT_EQ(parts.nats, whole.nats);
    EXPECT_EQ(parts.teacher_nats, whole.teacher_nats);
    EXPECT_EQ(parts.kl, whole.kl);
    EXPECT_EQ(parts.agreements, whole.agreements);
  }
}

TEST(Perplexity, EqualsTheFormulaForEveryWindowing) {
  const Tensor logits = at::randn({kVocabulary, kVocabulary});
  ToyModel model(logits);
  const std::vector<EvalDocument> documents = {document(37, 1), document(1, 2), document(2, 3), document(20, 4)};
  const double expected = direct_nats(logits, documents);
  for (const int64_t context : {1, 5, 19, 64}) {
    for (const int64_t stride : {int64_t{0}, std::max<int64_t>(context / 2, 1)}) {
      for (const bool carry : {false, true}) {
        if (carry && stride != 0 && stride != context) continue;
        const auto result =
            perplexity(model, nullptr, documents, {.context_length = context, .stride = stride, .batch_size = 3, .carry_state = carry});
        EXPECT_EQ(result.target_tokens, 36 + 1 + 19);
        EXPECT_NEAR(result.nats, expected, 1e-4) << context << " " << stride;
      }
    }
  }
  EXPECT_LE(model.largest_batch, 3);
}

// What it predicts depends on every token of a window up to there.
class PrefixModel : public ToyModel {
 public:
  using ToyModel::ToyModel;
  Tensor forward_hidden(const Tensor& tokens_BS, const Tensor& is_start_BS = {}) override {
    return ToyModel::forward_hidden(tokens_BS.cumsum(1).remainder(kVocabulary), is_start_BS);
  }
};

TEST(Perplexity, EveryTargetHasTheContextOfItsWindow) {
  const Tensor logits = at::randn({kVocabulary, kVocabulary});
  PrefixModel model(logits);
  const Tensor log_probability = logits.to(at::kDouble).log_softmax(1);
  const EvalDocument text = document(41, 3);
  for (const int64_t context : {1, 5, 8, 64}) {
    for (const int64_t stride : {int64_t{1}, std::max<int64_t>(context / 2, 1), context}) {
      double expected = 0;
      for (int64_t at = 1; at < 41; ++at) {
        const int64_t window = at <= context ? 0 : (at - context + stride - 1) / stride;  // the first that holds it
        int64_t sum = 0;
        for (int64_t i = window * stride; i < at; ++i) sum += text.tokens[static_cast<size_t>(i)];
        expected -= log_probability[sum % kVocabulary][text.tokens[static_cast<size_t>(at)]].item<double>();
      }
      const std::vector<EvalDocument> documents = {text};
      const auto result = perplexity(model, nullptr, documents, {.context_length = context, .stride = stride, .batch_size = 3});
      EXPECT_NEAR(result.nats, expected, 1e-4) << context << " " << stride;
    }
  }
}

// Every target's own loss, position by position, by the formula; the ranges are slices of it.
TEST(Perplexity, RangesOfPositionsAreSlicesOfEachTargetsLoss) {
  const Tensor logits = at::randn({kVocabulary, kVocabulary}), other = at::randn({kVocabulary, kVocabulary});
  PrefixModel model(logits), teacher(other);
  const Tensor p = other.to(at::kDouble).log_softmax(1), q = logits.to(at::kDouble).log_softmax(1);
  const std::vector<EvalDocument> documents = {document(31, 1), document(11, 2), document(8, 3), document(2, 4)};
  for (const std::vector<int64_t>& ends : {std::vector<int64_t>{10}, {1, 10}, {3, 4, 10}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}}) {
    for (const int64_t stride : {10, 4}) {
      std::vector<TargetSums> expected(ends.size());
      for (const auto& text : documents) {
        int64_t scored = 1;
        for (int64_t begin = 0; scored < static_cast<int64_t>(text.tokens.size()); begin += stride) {
          int64_t sum = 0;
          for (int64_t position = 1; position <= 10 && begin + position < static_cast<int64_t>(text.tokens.size()); ++position) {
            sum += text.tokens[static_cast<size_t>(begin + position - 1)];
            if (begin + position < scored) continue;  // the window before had it
            const int64_t row = sum % kVocabulary, target = text.tokens[static_cast<size_t>(begin + position)];
            auto& range = expected[static_cast<size_t>(std::ranges::lower_bound(ends, position) - ends.begin())];
            ++range.target_tokens;
            range.nats -= q[row][target].item<double>();
            range.teacher_nats -= p[row][target].item<double>();
            range.kl += (p[row].exp() * (p[row] - q[row])).sum().item<double>();
            range.agreements += p[row].argmax().item<int64_t>() == q[row].argmax().item<int64_t>() ? 1 : 0;
            scored = begin + position + 1;
          }
        }
      }
      for (const int64_t batch_size : {1, 3, 50}) {
        PerplexityOptions options{.context_length = 10, .stride = stride, .batch_size = batch_size, .position_ends = ends};
        const auto result = perplexity(model, &teacher, documents, options);
        ASSERT_EQ(result.by_position.size(), ends.size());
        TargetSums all;
        for (size_t i = 0; i < ends.size(); ++i) {
          const auto& range = result.by_position[i];
          all.add(range);
          EXPECT_EQ(range.target_tokens, expected[i].target_tokens) << i;
          EXPECT_NEAR(range.nats, expected[i].nats, 1e-4) << i;
          EXPECT_NEAR(range.teacher_nats, expected[i].teacher_nats, 1e-4) << i;
          EXPECT_NEAR(range.kl, expected[i].kl, 1e-4) << i;
          EXPECT_EQ(range.agreements, expected[i].agreements) << i;
        }
        EXPECT_EQ(all.target_tokens, 30 + 10 + 7 + 1);
        EXPECT_EQ(result.target_tokens, all.target_tokens);
        EXPECT_NEAR(result.nats, all.nats, 1e-9);
        options.position_ends.clear();
        const auto plain = perplexity(model, &teacher, documents, options);
        EXPECT_TRUE(plain.by_position.empty());
        EXPECT_NEAR(plain.nats, result.nats, 1e-4);
        EXPECT_EQ(plain.agreements, result.agreements);
      }
    }
  }
}

TEST(Perplexity, ComparesTwoModelsOnTheSameTokens) {
  const Tensor logits = at::randn({kVocabulary, kVocabulary}), other = at::randn({kVocabulary, kVocabulary});
  ToyModel model(logits), teacher(other), twin(logits);
  const std::vector<EvalDocument> documents = {document(50, 9)};
  const auto same = perplexity(model, &twin, documents, {.context_length = 7});
  EXPECT_EQ(same.agreements, 49);
  EXPECT_NEAR(same.kl, 0.0, 1e-5);
  EXPECT_NEAR(same.teacher_nats, same.nats, 1e-9);

  const auto result = perplexity(model, &teacher, documents, {.context_length = 7});
  EXPECT_NEAR(result.teacher_nats, direct_nats(other, documents), 1e-4);
  const Tensor p = other.to(at::kDouble).log_softmax(1), q = logits.to(at::kDouble).log_softmax(1);
  const Tensor kl = (p.exp() * (p - q)).sum(1);
  const Tensor agrees = p.argmax(1) == q.argmax(1);
  double expected_kl = 0;
  int64_t expected_agreements = 0;
  for (size_t at = 0; at + 1 < documents[0].tokens.size(); ++at) {
    expected_kl += kl[documents[0].tokens[at]].item<double>();
    expected_agreements += agrees[documents[0].tokens[at]].item<bool>() ? 1 : 0;
  }
  EXPECT_NEAR(result.kl, expected_kl, 1e-4);
  EXPECT_EQ(result.agreements, expected_agreements);

  const json figures = result.to_json(true);
  EXPECT_NEAR(figures["perplexity"].get<double>(), std::exp(result.nats / 49), 1e-9);
  EXPECT_NEAR(figures["bits_per_byte"].get<double>(), result.nats / std::log(2.0) / 150, 1e-9);
  EXPECT_NEAR(figures["perplexity_ratio"].get<double>(), figures["perplexity"].get<double>() / figures["teacher_perplexity"].get<double>(),
              1e-9);
  EXPECT_FALSE(result.to_json(false).contains("mean_kl"));
}

TEST(Perplexity, RefusesWhatMakesNoSense) {
  ToyModel model(at::randn({kVocabulary, kVocabulary})), wider(at::randn({kVocabulary + 1, kVocabulary + 1}));
  const std::vector<EvalDocument> documents = {document(5, 1)};
  EXPECT_THROW(perplexity(model, nullptr, documents, {.context_length = 0}), ValueError);
  EXPECT_THROW(perplexity(model, nullptr, documents, {.context_length = 4, .stride = 5}), ValueError);
  EXPECT_THROW(perplexity(model, nullptr, documents, {.context_length = 4, .stride = 2, .carry_state = true}), ValueError);
  EXPECT_THROW(perplexity(model, nullptr, {document(1, 1)}, {}), ValueError);
  EXPECT_THROW(perplexity(model, &wider, documents, {}), ShapeError);
  for (const std::vector<int64_t>& ends : {std::vector<int64_t>{0, 4}, {2, 2, 4}, {3}, {5}, {4, 2}})
    EXPECT_THROW(perplexity(model, nullptr, documents, {.context_length = 4, .position_ends = ends}), ValueError);
  EvalDocument foreign;
  foreign.tokens = {1, static_cast<int32_t>(kVocabulary)};
  EXPECT_THROW(perplexity(model, nullptr, {foreign}, {}), ValueError);
}

}  // namespace
}  // namespace distil_xlstm::eval
