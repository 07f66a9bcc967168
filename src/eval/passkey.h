// Pass-key retrieval: a number of five digits somewhere in a long text of no importance, and the question for it at the end.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::eval {

// The lines of a prompt: intro, filler, key, filler, question.
struct PasskeyTexts {
  std::string intro, key, question;   // "KEY" in `key` stands for the digits
  std::vector<std::string> filler;    // words; a prompt takes some in a row, begins anew behind the last, and ends with a sentence
  std::string filler_source;          // the file that they are from
  std::vector<size_t> sentence_ends;  // ascending: numbers of words up to one with . ! or ? at its end
  std::vector<size_t> byte_ends;      // bytes up to the end of each word, a space for each
};

// share/passkey.toml, or with the filler of a text of one's own (UTF-8). Throws ConfigError or DataError that names the file.
PasskeyTexts load_passkey_texts(const fs::path& filler_file);

struct PasskeyPrompt {
  std::string text, key;
  double depth = 0.0;      // share of the filler before the key
  int64_t num_tokens = 0;  // as encode_prompt gives them
};

// Prompts of at most `length` tokens of this tokenizer, as near to it as whole words of filler allow. The key stands between two sentences,
// each place as likely as any other. The same seed and length give the same ones, whatever their number. Throws ConfigError where a prompt
// without filler is longer, DataError where no word of filler fits or a prompt falls short of `length` by more than 5 %.
std::vector<PasskeyPrompt> make_passkey_prompts(const PasskeyTexts& texts, const Tokenizer& tokenizer, int64_t length, int64_t count,
                                                uint64_t seed);

// Tokens in which a model can answer: those of the key behind the question, with the white space before it, and one more, which shows where
// the number ends.
int64_t answer_tokens(const PasskeyTexts& texts, const std::string& key, const Tokenizer& tokenizer);

// Whether an answer is the key: these digits and no more, behind white space at most.
bool is_key(std::string_view answer, std::string_view key);

}  // namespace distil_xlstm::eval
