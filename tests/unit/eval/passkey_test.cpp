#include "eval/passkey.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/error.h"
#include "eval/means.h"
#include "support/source_directory.h"
#include "tokenizer/document_borders.h"

namespace distil_xlstm::eval {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

const Tokenizer& tokenizer() {
  static const Tokenizer instance(*io::open_model("stories260K").tokenizer);
  return instance;
}

size_t count_of(std::string_view text, std::string_view part) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string_view::npos; at += part.size()) ++count;
  return count;
}

// A text of one's own, in a file.
PasskeyTexts with_filler(const std::string& text) {
  const fs::path path = fs::path(::testing::TempDir()) / "passkey_filler.txt";
  std::ofstream(path) << text;
  return load_passkey_texts(path);
}

// With a word of so many parts.
std::string hard_filler(int64_t num_parts) {
  std::string text = "Short words. Then ";
  for (int64_t i = 0; i < num_parts; ++i) text += "incomprehensibilities";
  return text + " again! \"Is it?\" he asked. Ünï-cödé — 12 345 (twice); no end";
}

TEST(Passkey, PromptsAreAsLongAsWordsOfFillerAllow) {
  for (const int64_t length : {230, 512, 1777}) {
    const auto repeated = [](size_t count, const std::string& word) {
      std::string text;
      for (size_t i = 0; i < count; ++i) text += word;
      return text;
    };
    // Digits take a token each, words do not: what one part of a text takes says little of the next.
    const std::string uneven =
        repeated(300, "7 ") + repeated(100, "little ") + "one. " + repeated(60, "upon ") + repeated(200, "\u00fc\u00fc ");
    for (const PasskeyTexts& texts :
         {load_passkey_texts(""), with_filler(hard_filler(length / 300)), with_filler("x"), with_filler("one two."), with_filler(uneven)}) {
      size_t longest_word = 0;
      for (const auto& word : texts.filler) longest_word = std::max(longest_word, tokenizer().encode(" " + word).size());
      for (const auto& prompt : make_passkey_prompts(texts, tokenizer(), length, 12, 3)) {
        EXPECT_EQ(prompt.num_tokens, static_cast<int64_t>(encode_prompt(tokenizer(), prompt.text).size()));
        EXPECT_LE(prompt.num_tokens, length);
        EXPECT_GE(prompt.num_tokens, length - static_cast<int64_t>(longest_word) - 2) << length;  // and a space and a newline
        EXPECT_THAT(prompt.text, StartsWith(texts.intro + "\n"));
        EXPECT_TRUE(prompt.text.ends_with("\n" + texts.question));
        ASSERT_EQ(prompt.key.size(), 5U);
        EXPECT_EQ(prompt.key.find_first_not_of("0123456789"), std::string::npos);
        EXPECT_NE(prompt.key[0], '0');
        EXPECT_EQ(count_of(prompt.text, "The pass key is " + prompt.key + ". Remember it. " + prompt.key + " is the pass key."), 1U);
      }
    }
  }
}

TEST(Passkey, KeysStandBetweenSentencesAtEveryDepth) {
  const PasskeyTexts texts = load_passkey_texts("");
  const auto prompts = make_passkey_prompts(texts, tokenizer(), 700, 400, 11);
  std::vector<double> depths;
  for (const auto& prompt : prompts) {
    depths.push_back(prompt.depth);
    const size_t at = prompt.text.find("\nThe pass key is " + prompt.key);
    ASSERT_NE(at, std::string::npos);
    const size_t begin = texts.intro.size();
    const std::string before = at == begin ? "" : prompt.text.substr(begin + 1, at - begin - 1);
    EXPECT_TRUE(before.empty() || before.back() == '.') << before;
    const auto words = static_cast<double>(count_of(before, " ") + (before.empty() ? 0 : 1));
    const size_t behind = prompt.text.find('\n', at + 1), question = prompt.text.rfind('\n');
    const std::string after = behind == question ? "" : prompt.text.substr(behind + 1, question - behind - 1);
    const auto rest = static_cast<double>(count_of(after, " ") + (after.empty() ? 0 : 1));
    EXPECT_NEAR(prompt.depth, words / (words + rest), 1e-12);
  }
  const MeanOf mean = mean_of(depths);
  EXPECT_NEAR(mean.mean, 0.5, 0.06);
  EXPECT_NEAR(mean.standard_error * std::sqrt(400.0), std::sqrt(1.0 / 12.0), 0.04);  // as of a uniform draw
  EXPECT_EQ(std::ranges::min(depths), 0.0);
  EXPECT_EQ(std::ranges::max(depths), 1.0);
}

TEST(Passkey, TheSeedSettlesThePrompts) {
  const PasskeyTexts texts = load_passkey_texts("");
  const auto texts_of = [&](int64_t length, int64_t count, uint64_t seed) {
    std::vector<std::string> all;
    for (auto& prompt : make_passkey_prompts(texts, tokenizer(), length, count, seed)) all.push_back(prompt.text);
    return all;
  };
  const auto all = texts_of(400, 9, 1);
  EXPECT_EQ(texts_of(400, 9, 1), all);
  EXPECT_EQ(texts_of(400, 4, 1), (std::vector<std::string>{all.begin(), all.begin() + 4}));
  EXPECT_NE(texts_of(400, 9, 2), all);
  EXPECT_NE(all[0], all[1]);
}

TEST(Passkey, AnAnswerIsTheKeyOnlyDigitByDigit) {
  for (const char* right : {"12345", " 12345", "\n 12345.", "12345 is", "12345a"}) EXPECT_TRUE(is_key(right, "12345")) << right;
  for (const char* wrong : {"", " ", "1234", "123456", "12354", "1 2345", "x12345", "012345", "12 345", "１2345"})
    EXPECT_FALSE(is_key(wrong, "12345")) << wrong;
  // As many tokens as the key, with the space before it and one more.
  const PasskeyTexts texts = load_passkey_texts("");
  const auto before = tokenizer().encode(texts.question), whole = tokenizer().encode(texts.question + " 90817.");
  ASSERT_TRUE(std::equal(before.begin(), before.end(), whole.begin()));
  EXPECT_EQ(answer_tokens(texts, "90817", tokenizer()), static_cast<int64_t>(whole.size() - before.size()));
}

TEST(Passkey, RefusesWhatLeavesNoRoom) {
  const PasskeyTexts texts = load_passkey_texts("");
  try {
    make_passkey_prompts(texts, tokenizer(), 20, 1, 0);
    FAIL() << "made a prompt";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("--passkey 20: a prompt without filler has "));
  }
  const auto refuses = [](const PasskeyTexts& given, int64_t length, const std::string& what) {
    try {
      make_passkey_prompts(given, tokenizer(), length, 20, 0);
      FAIL() << "made a prompt";
    } catch (const DataError& error) {
      EXPECT_THAT(error.what(), HasSubstr(given.filler_source + ": --passkey " + std::to_string(length) + ": a prompt has "));
      EXPECT_THAT(error.what(), HasSubstr(what));
    }
  };
  const std::string fable(8U << 20U, 'a');  // no white space: one word, which is never tokenised
  refuses(with_filler(fable), 512, " tokens and no filler: the next word of filler, 8388608 bytes long, does not fit: give a text of");
  refuses(with_filler("Short. " + fable), 512, " tokens: the next word of filler, 8388608 bytes long, does not fit");
  refuses(with_filler(hard_filler(60)), 512, " tokens: the next word of filler, 1260 bytes long, does not fit");
  // The first length that a prompt without filler fits in leaves no room for a word.
  int64_t without = 20;
  const auto is_too_short = [&](int64_t length) {
    try {
      make_passkey_prompts(texts, tokenizer(), length, 20, 0);
    } catch (const ConfigError&) {
      return true;
    } catch (const DataError&) {
    }
    return false;
  };
  while (is_too_short(without)) ++without;
  refuses(texts, without, " tokens and no filler");
  EXPECT_THROW(with_filler(" \n "), DataError);
  EXPECT_THROW(with_filler("\xff\xfe words"), DataError);
  EXPECT_THROW(load_passkey_texts("no-such-file.txt"), IoError);
}

TEST(Means, OfThePairedDifference) {
  const std::vector<double> model = {1, 0, 0, 1}, teacher = {1, 1, 0, 1};
  const json paired = paired_json(model, teacher);
  EXPECT_DOUBLE_EQ(paired["kept"].get<double>(), 2.0 / 3.0);
  EXPECT_DOUBLE_EQ(paired["difference"].get<double>(), -0.25);
  EXPECT_DOUBLE_EQ(paired["difference_stderr"].get<double>(), 0.25);  // -1 once in four: s = 0.5, n = 4
  EXPECT_TRUE(paired_json(model, std::vector<double>(4, 0.0))["kept"].is_null());
}

}  // namespace
}  // namespace distil_xlstm::eval
