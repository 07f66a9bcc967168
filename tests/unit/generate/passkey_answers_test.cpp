// Models that always or never find the pass key.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "eval/passkey.h"
#include "generate/greedy.h"
#include "io/model_files.h"
#include "support/rule_model.h"
#include "tokenizer/document_borders.h"

namespace distil_xlstm::generate {
namespace {

int64_t num_right(nn::LanguageModel& model, const Tokenizer& tokenizer, int64_t length) {
  const auto texts = eval::load_passkey_texts("");
  const auto prompts = eval::make_passkey_prompts(texts, tokenizer, length, 20, 5);
  std::vector<std::vector<int32_t>> ids;
  int64_t num_tokens = 0, right = 0;
  for (const auto& prompt : prompts) {
    ids.push_back(encode_prompt(tokenizer, prompt.text));
    num_tokens = std::max(num_tokens, eval::answer_tokens(texts, prompt.key, tokenizer));
  }
  const auto written = greedy_continuations(model, ids, {.max_new_tokens = num_tokens}).continuations;
  for (size_t i = 0; i < prompts.size(); ++i) right += eval::is_key(tokenizer.decode(written[i], true), prompts[i].key) ? 1 : 0;
  return right;
}

TEST(PasskeyAnswers, AreAllRightOfAModelThatCopiesAndNoneOfOneThatDoesNot) {
  const Tokenizer tokenizer(*io::open_model("stories260K").tokenizer);
  const int64_t vocab_size = tokenizer.vocab_size(), no_digit = tokenizer.encode("a").front();
  // "key is" and up to four digits: what follows them is the key's next digit.
  const auto copy = copies_after_the_same(6, no_digit);
  RuleModel copying(vocab_size, copy), silent(vocab_size, [=](const auto&) { return no_digit; });
  for (const int64_t length : {300, 511}) {
    EXPECT_EQ(num_right(copying, tokenizer, length), 20);
    EXPECT_EQ(num_right(silent, tokenizer, length), 0);
  }
  // Five right digits, and one more.
  const auto is_digit = [&](int64_t id) { return std::string("0123456789").find(tokenizer.piece(static_cast<int32_t>(id))) < 10; };
  RuleModel longer(vocab_size, [&](const std::vector<int64_t>& tokens) {
    const int64_t next = copy(tokens);
    return is_digit(tokens.back()) && !is_digit(next) ? tokens.back() : next;
  });
  EXPECT_EQ(num_right(longer, tokenizer, 300), 0);
}

}  // namespace
}  // namespace distil_xlstm::generate
