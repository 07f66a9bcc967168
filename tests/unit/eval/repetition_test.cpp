#include "eval/repetition.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "io/model_files.h"

namespace distil_xlstm::eval {
namespace {

TEST(Repetition, IsTheShareOfNgramsThatCameBefore) {
  std::vector<int32_t> all_new(50);
  std::iota(all_new.begin(), all_new.end(), 0);
  EXPECT_EQ(repeated_ngrams(all_new), 0.0);
  EXPECT_DOUBLE_EQ(repeated_ngrams(std::vector<int32_t>(20, 7)), 1.0 - 1.0 / 17);
  std::vector<int32_t> loop;  // 1 2 3 4 5 again and again: five 4-grams, of 197
  for (int i = 0; i < 200; ++i) loop.push_back(1 + i % 5);
  EXPECT_DOUBLE_EQ(repeated_ngrams(loop), 1.0 - 5.0 / 197);
  // 1 2 3 4 | 1 2 3 4: 1234, 2341, 3412, 4123, 1234.
  EXPECT_DOUBLE_EQ(repeated_ngrams(std::vector<int32_t>{1, 2, 3, 4, 1, 2, 3, 4}), 1.0 - 4.0 / 5);
  EXPECT_DOUBLE_EQ(repeated_ngrams(std::vector<int32_t>{1, 2, 1, 2, 1}, 1), 1.0 - 2.0 / 5);
  EXPECT_EQ(repeated_ngrams(std::vector<int32_t>{1, 1, 1}), 0.0);
  EXPECT_EQ(repeated_ngrams(std::vector<int32_t>{1, 1, 1, 1}), 0.0);
  EXPECT_EQ(repeated_ngrams(std::vector<int32_t>{}), 0.0);
  EXPECT_THROW(repeated_ngrams(all_new, 0), ValueError);
}

// What stands around a text: `<s>` before it and, if asked for, `</s>` behind it.
Tokenizer tokenizer_with_end(bool has_end) {
  io::TokenizerFiles files = *io::open_model("stories260K").tokenizer;
  json tree = parse_json(files.tokenizer_json, "tokenizer.json");
  json single = json::parse(R"([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}])");
  json pair = single;
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  if (has_end) single.push_back({{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}});
  tree["post_processor"] = {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}};
  tree["post_processor"]["special_tokens"] =
      json::parse(R"({"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}})");
  files.tokenizer_json = tree.dump();
  return Tokenizer(files);
}

TEST(Repetition, ADocumentsBeginningHasNothingOfWhatStandsAroundATextAndWholeCharacters) {
  const std::string text = "Once upon a time ünï 日本語 🦊🦊 end";
  for (const bool has_end : {false, true}) {
    const Tokenizer tokenizer = tokenizer_with_end(has_end);
    ASSERT_EQ(tokenizer.suffix_ids().size(), has_end ? 1U : 0U);
    const auto document = tokenizer.encode(text, /*add_special_tokens=*/true);
    const size_t num_own = tokenizer.encode(text).size();
    ASSERT_EQ(document.size(), 1 + num_own + (has_end ? 1 : 0));
    size_t num_cut = 0, last = 0;
    for (size_t count = 1; count <= num_own; ++count) {
      const auto beginning = document_beginning(tokenizer, document, count);
      if (!beginning) {
        EXPECT_LE(count, 1U);  // of the space before the first word alone
        continue;
      }
      EXPECT_TRUE(text.starts_with(*beginning)) << *beginning;
      EXPECT_EQ(valid_utf8_prefix(*beginning), beginning->size());
      EXPECT_GE(beginning->size(), last);
      num_cut += beginning->size() == last ? 1 : 0;
      last = beginning->size();
    }
    EXPECT_GE(num_cut, 3U * 2U);  // inside of a fox
    EXPECT_EQ(document_beginning(tokenizer, document, num_own), text);
    EXPECT_EQ(document_beginning(tokenizer, document, num_own + 1), std::nullopt);
    EXPECT_EQ(document_beginning(tokenizer, {}, 1), std::nullopt);
    const auto fox = tokenizer.encode("🦊", true);
    EXPECT_EQ(document_beginning(tokenizer, fox, 2), std::nullopt);  // no whole character
  }
}

}  // namespace
}  // namespace distil_xlstm::eval
