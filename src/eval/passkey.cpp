#include "eval/passkey.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "base/text.h"
#include "config/toml.h"
#include "tokenizer/document_borders.h"

namespace distil_xlstm::eval {
namespace {

constexpr std::string_view kSpaces = " \t\r\n\v\f";
constexpr std::string_view kDigits = "0123456789";
constexpr std::string_view kKeyMark = "KEY";

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  for (size_t at = 0; (at = text.find_first_not_of(kSpaces, at)) != std::string_view::npos;) {
    const size_t end = std::min(text.find_first_of(kSpaces, at), text.size());
    words.emplace_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

bool ends_sentence(std::string_view word) {
  const size_t last = word.find_last_not_of("\"')");
  return last != std::string_view::npos && std::string_view(".!?").find(word[last]) != std::string_view::npos;
}

std::string replace_all(std::string text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) text.replace(at, from.size(), to);
  return text;
}

// A prompt whose length is being found.
class Draft {
 public:
  Draft(const PasskeyTexts& texts, Random random) : texts_(texts) {
    key_ = std::to_string(10000 + random.below(90000));
    place_ = random.uniform();
    const auto& filler = texts.filler;
    std::vector<size_t> ends;
    for (size_t i = 0; i < filler.size(); ++i) {
      if (ends_sentence(filler[i])) ends.push_back(i + 1);
    }
    end_ = ends.empty() ? filler.size() : ends[random.below(ends.size())];
  }

  // With so many words of filler, the last of which ends a sentence.
  [[nodiscard]] PasskeyPrompt with_words(size_t count) const {
    const size_t size = texts_.filler.size(), first = (end_ + size - count % size) % size;
    const auto word = [&](size_t i) -> const std::string& { return texts_.filler[(first + i) % size]; };
    std::vector<size_t> places = {0};  // before which word the key may stand
    for (size_t i = 1; i < count; ++i) {
      if (ends_sentence(word(i - 1))) places.push_back(i);
    }
    if (count > 0) places.push_back(count);
    const size_t place = places[static_cast<size_t>(place_ * static_cast<double>(places.size()))];
    PasskeyPrompt prompt{.text = texts_.intro, .key = key_};
    const auto add_filler = [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) prompt.text.append(i == begin ? "\n" : " ").append(word(i));
    };
    add_filler(0, place);
    prompt.text.append("\n").append(replace_all(texts_.key, kKeyMark, key_));
    add_filler(place, count);
    prompt.text.append("\n").append(texts_.question);
    prompt.depth = count == 0 ? 0.0 : static_cast<double>(place) / static_cast<double>(count);
    return prompt;
  }

  // Takes in that a prompt of `next` words has so many tokens.
  void learn(PasskeyPrompt prompt, int64_t num_tokens, int64_t length) {
    prompt.num_tokens = num_tokens;
    if (num_tokens <= length) {
      fitting_ = next;
      best = std::move(prompt);
    } else {
      too_long_ = next;
    }
    next = guess(num_tokens, length);
    // A text of very different words: by halves.
    if (++num_steps_ > kGuesses) next = too_long_ == kUnknown ? fitting_ * 2 : std::midpoint(fitting_, too_long_);
    next = std::clamp(next, fitting_ + 1, std::max(too_long_ - 1, fitting_ + 1));
  }

  [[nodiscard]] bool is_found() const { return fitting_ + 1 >= too_long_; }
  size_t next = 0;  // words to try
  PasskeyPrompt best;

 private:
  static constexpr size_t kUnknown = size_t{1} << 40;
  static constexpr int kGuesses = 6;

  // By the tokens that the words tried last have taken; at first one each.
  size_t guess(int64_t num_tokens, int64_t length) {
    const auto missing = static_cast<double>(length - num_tokens);
    if (next == 0) {
      tokens_without_ = num_tokens;
      return static_cast<size_t>(missing);
    }
    const auto words = static_cast<double>(next), tokens = static_cast<double>(std::max<int64_t>(num_tokens - tokens_without_, 1));
    return static_cast<size_t>(std::max(words + missing * words / tokens, 0.0));
  }

  const PasskeyTexts& texts_;
  std::string key_;
  double place_ = 0.0;
  size_t end_ = 0;  // the word behind the last one
  size_t fitting_ = 0, too_long_ = kUnknown;
  int64_t tokens_without_ = 0;
  int num_steps_ = 0;
};

std::string text_at(const json& tree, const std::string& key, const std::string& where) {
  const auto found = tree.find(key);
  if (found == tree.end() || !found->is_string()) throw ConfigError("{}: '{}' must be a text", where, key);
  return found->get<std::string>();
}

}  // namespace

PasskeyTexts load_passkey_texts(const fs::path& filler_file) {
  const fs::path path = share_directory() / "passkey.toml";
  const json tree = config::parse_toml_tree(read_file(path), path.string());
  PasskeyTexts texts{.intro = text_at(tree, "intro", path.string()),
                     .key = text_at(tree, "key", path.string()),
                     .question = text_at(tree, "question", path.string()),
                     .filler = {}};
  std::string filler = filler_file.empty() ? text_at(tree, "filler", path.string()) : read_file(filler_file);
  const fs::path& where = filler_file.empty() ? path : filler_file;
  if (valid_utf8_prefix(filler) != filler.size()) throw DataError("{}: not UTF-8", where.string());
  texts.filler = words_of(filler);
  if (texts.filler.empty()) throw DataError("{}: no words: text is needed to hide the key in", where.string());
  return texts;
}

std::vector<PasskeyPrompt> make_passkey_prompts(const PasskeyTexts& texts, const Tokenizer& tokenizer, int64_t length, int64_t count,
                                                uint64_t seed) {
  std::vector<Draft> drafts;
  for (int64_t i = 0; i < count; ++i)
    drafts.emplace_back(texts, Random(seed, (static_cast<uint64_t>(length) << 32U) + static_cast<uint64_t>(i)));
  std::vector<Draft*> open;
  for (Draft& draft : drafts) open.push_back(&draft);
  while (!open.empty()) {
    std::vector<PasskeyPrompt> prompts;
    std::vector<std::string_view> views;
    for (const Draft* draft : open) prompts.push_back(draft->with_words(draft->next));
    for (const PasskeyPrompt& prompt : prompts) views.emplace_back(prompt.text);
    const auto ids = tokenizer.encode_batch(views);
    for (size_t i = 0; i < open.size(); ++i) {
      const auto num_tokens = static_cast<int64_t>(ids[i].size() + tokenizer.prefix_ids().size());
      if (open[i]->next == 0 && num_tokens > length) {
        throw ConfigError("--passkey {}: a prompt without filler has {} tokens: the key needs room to be hidden in", length, num_tokens);
      }
      open[i]->learn(std::move(prompts[i]), num_tokens, length);
    }
    std::erase_if(open, [](const Draft* draft) { return draft->is_found(); });
  }
  std::vector<PasskeyPrompt> prompts;
  for (Draft& draft : drafts) prompts.push_back(std::move(draft.best));
  return prompts;
}

int64_t answer_tokens(const PasskeyTexts& texts, const std::string& key, const Tokenizer& tokenizer) {
  const auto with_key = static_cast<int64_t>(tokenizer.encode(texts.question + " " + key).size());
  return with_key - static_cast<int64_t>(tokenizer.encode(texts.question).size()) + 1;
}

bool is_key(std::string_view answer, std::string_view key) {
  answer.remove_prefix(std::min(answer.find_first_not_of(kSpaces), answer.size()));
  if (!answer.starts_with(key)) return false;
  return answer.size() == key.size() || kDigits.find(answer[key.size()]) == std::string_view::npos;
}

}  // namespace distil_xlstm::eval
