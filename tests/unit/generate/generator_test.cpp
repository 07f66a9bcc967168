#include "generate/generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "generate/synthesize.h"
#include "support/toy_model.h"

namespace distil_xlstm::generate {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// After token t comes t + 1.
ToyModel counting_model(int64_t vocab_size) {
  Tensor logits = at::full({vocab_size, vocab_size}, -20.0);
  for (int64_t id = 0; id < vocab_size; ++id) logits[id][(id + 1) % vocab_size] = 20.0;
  return ToyModel(logits);
}

const Tokenizer& tokenizer() {
  static const Tokenizer instance(*io::open_model("stories260K").tokenizer);
  return instance;
}

// The tokenizer of stories260K strips the space of a text's first piece.
std::string decoded_after(std::vector<int32_t> ids, const std::vector<int32_t>& more) {
  const std::string before = tokenizer().decode(ids);
  ids.insert(ids.end(), more.begin(), more.end());
  return tokenizer().decode(ids).substr(before.size());
}

TEST(Generate, KeepsTheSpaceBetweenPromptAndContinuation) {
  const auto prompt = tokenizer().encode("Lily and"), more = tokenizer().encode("T");
  ASSERT_EQ(more.size(), 1U);
  Tensor logits = at::full({tokenizer().vocab_size(), tokenizer().vocab_size()}, -20.0);
  logits.select(1, more[0]).fill_(20.0);
  ToyModel model(logits);
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_new_tokens = 1;
  EXPECT_EQ(generate(model, tokenizer(), prompt, options).text, " T");
  EXPECT_EQ(generate(model, tokenizer(), {*tokenizer().bos_id()}, options).text, "T") << "the first piece of a text";
  options.continues_text = false;
  EXPECT_EQ(generate(model, tokenizer(), prompt, options).text, "T") << "an answer begins a text";
}

TEST(Generate, ContinuesGreedilyInPieces) {
  ToyModel model = counting_model(tokenizer().vocab_size());
  for (const int64_t piece : {1, 2, 512}) {
    GenerateOptions options;
    options.sampling.temperature = 0;
    options.max_new_tokens = 4;
    options.prefill_piece = piece;
    const auto result = generate(model, tokenizer(), {300, 301, 302}, options);
    EXPECT_THAT(result.tokens, ElementsAre(303, 304, 305, 306));
    EXPECT_EQ(result.finish_reason, "length");
    EXPECT_EQ(result.prompt_tokens, 3);
    EXPECT_EQ(result.text, decoded_after({300, 301, 302}, result.tokens));
  }
}

TEST(Generate, EndsBeforeAStopToken) {
  ToyModel model = counting_model(tokenizer().vocab_size());
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.stop_ids = {305};
  const auto result = generate(model, tokenizer(), {302}, options);
  EXPECT_THAT(result.tokens, ElementsAre(303, 304));
  EXPECT_EQ(result.finish_reason, "stop");
}

TEST(Generate, EndsBeforeAStopTextAndStreamsOnlyWhatIsCertain) {
  ToyModel model = counting_model(tokenizer().vocab_size());
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_new_tokens = 30;
  const std::string whole = generate(model, tokenizer(), {300}, options).text;
  ASSERT_GT(whole.size(), 20U);
  for (const size_t at : {size_t{3}, size_t{8}, size_t{12}}) {
    const std::string stop = whole.substr(at, 4);
    options.stop = {"never comes", stop};
    std::string streamed;
    const auto result = generate(model, tokenizer(), {300}, options, [&](const std::string& text) { streamed += text; });
    EXPECT_EQ(result.text, whole.substr(0, whole.find(stop)));
    EXPECT_EQ(streamed, result.text);
    EXPECT_EQ(result.finish_reason, "stop");
  }
  options.stop = {whole.substr(whole.size() - 2) + "x"};  // begins at the end, never completes
  EXPECT_EQ(generate(model, tokenizer(), {300}, options).text, whole);
}

TEST(Generate, RefusesEmptyAndForeignPrompts) {
  ToyModel model = counting_model(20);
  EXPECT_THROW(generate(model, tokenizer(), {}, {}), ValueError);
  EXPECT_THROW(generate(model, tokenizer(), {20}, {}), DataError);
  EXPECT_THROW(generate(model, tokenizer(), {1}, {.max_new_tokens = 0}), ValueError);
}

TEST(Generate, NamesATokenThatTheModelHasNoRowFor) {
  ToyModel model = counting_model(300);
  try {
    generate(model, tokenizer(), {1, 403}, {.model_name = "m"});
    FAIL() << "took a token without a row";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(),
                HasSubstr("m: the text holds '▁Once' (id 403), for which the model has no row: it has 300, the tokenizer 512"));
  }
}

// Models pad their vocabulary; a text never holds what no token stands for.
TEST(Generate, WritesNoRowWithoutAToken) {
  const int64_t num_tokens = tokenizer().vocab_size();
  Tensor logits = at::zeros({num_tokens + 9, num_tokens + 9});
  logits.narrow(1, num_tokens, 9).fill_(30.0);
  ToyModel model(logits);
  for (const double temperature : {0.0, 1.0}) {
    for (const double repetition_penalty : {1.0, 1.5}) {
      GenerateOptions options;
      options.sampling = {.temperature = temperature, .repetition_penalty = repetition_penalty};
      options.max_new_tokens = 40;
      for (const int32_t id : generate(model, tokenizer(), {300}, options).tokens) EXPECT_LT(id, num_tokens);
    }
  }
}

TEST(Generate, SaysWhichPartOfTheModelGivesNoNumbers) {
  Tensor logits = at::zeros({tokenizer().vocab_size(), tokenizer().vocab_size()});
  logits[300][7] = std::nan("");
  ToyModel model(logits);
  try {
    generate(model, tokenizer(), {300}, {.model_name = "m"});
    FAIL() << "went on";
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), 1);
    EXPECT_THAT(error.what(), HasSubstr("m in fp32: 'lm_head.weight' holds values that are not finite"));
  }
  SynthesizeOptions options;
  options.prompt = {300};
  options.model_name = "m";
  for (const int64_t batch_size : {1, 70}) {
    options.batch_size = batch_size;
    try {
      synthesize_batch(model, options, 0);
      FAIL() << "went on";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("m in fp32: 'lm_head.weight' holds values that are not finite"));
    }
  }
}

TEST(Synthesize, WritesNothingThatIsLeftOut) {
  Tensor logits = at::zeros({16, 16});
  logits.select(1, 3).fill_(8.0);
  logits.narrow(1, 12, 4).fill_(9.0);
  ToyModel model(logits);
  SynthesizeOptions options;
  options.prompt = {1};
  options.left_out = {3, 12, 13, 14, 15};
  options.max_document_tokens = 30;
  for (const int64_t batch_size : {1, 6, 70}) {
    options.batch_size = batch_size;
    for (const auto& document : synthesize_batch(model, options, 0)) {
      for (const int32_t id : document) EXPECT_TRUE(id < 12 && id != 3) << id;
    }
  }
}

TEST(Synthesize, DocumentsDependOnTheirNumberNotOnTheBatch) {
  ToyModel model(at::randn({11, 11}));
  SynthesizeOptions options;
  options.prompt = {1};
  options.stop_ids = {0};
  options.max_document_tokens = 9;
  options.sampling.seed = 4;
  options.batch_size = 6;
  const auto together = synthesize_batch(model, options, 10);
  options.batch_size = 1;
  for (uint64_t index = 0; index < 6; ++index) EXPECT_EQ(synthesize_batch(model, options, 10 + index)[0], together[index]);
  for (const auto& document : together) {
    EXPECT_EQ(document[0], 1);
    EXPECT_LE(document.size(), 9U);
    for (const int32_t id : document) EXPECT_NE(id, 0);
  }
  EXPECT_THROW(synthesize_batch(model, {.prompt = {}}, 0), ValueError);
  EXPECT_THROW(synthesize_batch(model, {.prompt = {1, 2}, .max_document_tokens = 2}, 0), ValueError);
}

}  // namespace
}  // namespace distil_xlstm::generate
