#include "eval/passkey.h"

#include <algorithm>
#include <numeric>
#include <ranges>

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

// Sentences that end within so many words of the filler, which begins anew behind its last word.
size_t sentences_within(const PasskeyTexts& texts, size_t num_words) {
  const auto& ends = texts.sentence_ends;
  const size_t size = texts.filler.size();
  return num_words / size * ends.size() + static_cast<size_t>(std::ranges::upper_bound(ends, num_words % size) - ends.begin());
}

// A prompt whose length is being found.
class Draft {
 public:
  Draft(const PasskeyTexts& texts, Random random) : texts_(texts) {
    key_ = std::to_string(10000 + random.below(90000));
    place_ = random.uniform();
    const auto& ends = texts.sentence_ends;
    end_ = ends.empty() ? texts.filler.size() : ends[random.below(ends.size())];
  }

  // With so many words of filler, the last of which ends a sentence.
  [[nodiscard]] PasskeyPrompt with_words(size_t count) const {
    const size_t size = texts_.filler.size(), first = (end_ + size - count % size) % size;
    const size_t place = place_of_key(first, count);
    PasskeyPrompt prompt{.text = texts_.intro, .key = key_};
    const auto add_filler = [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) prompt.text.append(i == begin ? "\n" : " ").append(texts_.filler[(first + i) % size]);
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
    double bytes = guess(prompt.text.size(), num_tokens, length);
    prompt.num_tokens = num_tokens;
    if (num_tokens <= length) {
      fitting_ = next;
      best = std::move(prompt);
    } else {
      too_long_ = next;
    }
    const auto least = static_cast<double>(num_bytes(fitting_)), most = kMostBytesPerToken * static_cast<double>(length);
    // A text of very different words: by halves.
    if (++num_steps_ > kGuesses)
      bytes = too_long_ == kUnknown ? least * 2 : std::midpoint(least, static_cast<double>(num_bytes(too_long_)));
    next = std::clamp(words_within(static_cast<size_t>(std::min(bytes, most))), fitting_ + 1, std::max(too_long_ - 1, fitting_ + 1));
    if (static_cast<double>(num_bytes(next)) > most) too_long_ = next;
  }

  [[nodiscard]] bool is_found() const { return fitting_ + 1 >= too_long_; }

  // Throws DataError where the best prompt is no prompt of this length.
  void check(int64_t length) const {
    const double share = static_cast<double>(best.num_tokens) / static_cast<double>(length);
    if (fitting_ > 0 && share >= kLeastShare) return;
    throw DataError(
        "{}: --passkey {}: a prompt has {} tokens{}: the next word of filler, {} bytes long, does not fit: give a text of shorter words "
        "with white space between them, or a greater length",
        texts_.filler_source, length, best.num_tokens, fitting_ == 0 ? " and no filler" : "",
        num_bytes(fitting_ + 1) - num_bytes(fitting_) - 1);
  }

  size_t next = 0;  // words to try
  PasskeyPrompt best;

 private:
  static constexpr size_t kUnknown = size_t{1} << 40;
  static constexpr int kGuesses = 6;
  static constexpr double kMostBytesPerToken = 64;  // of filler: what has more is too long without being tokenised
  static constexpr double kLeastShare = 0.95;       // of the length asked for

  // Before which of `count` words the key stands: the first, one that begins a sentence, or the question.
  [[nodiscard]] size_t place_of_key(size_t first, size_t count) const {
    if (count == 0) return 0;
    const size_t before = sentences_within(texts_, first), between = sentences_within(texts_, first + count - 1) - before;
    const auto chosen = static_cast<size_t>(place_ * static_cast<double>(between + 2));
    if (chosen == 0) return 0;
    if (chosen > between) return count;
    const auto& ends = texts_.sentence_ends;
    const size_t sentence = before + chosen - 1;
    return ends[sentence % ends.size()] + sentence / ends.size() * texts_.filler.size() - first;
  }

  // Bytes of the last `count` words, each with the space before it.
  [[nodiscard]] size_t num_bytes(size_t count) const {
    const auto& ends = texts_.byte_ends;
    const auto up_to = [&](size_t word) { return word == 0 ? 0 : ends[word - 1]; };
    const size_t rest = count % ends.size(), rounds = count / ends.size() * ends.back();
    if (rest <= end_) return rounds + up_to(end_) - up_to(end_ - rest);
    return rounds + up_to(end_) + ends.back() - up_to(ends.size() + end_ - rest);
  }

  // How many words have so many bytes at most.
  [[nodiscard]] size_t words_within(size_t bytes) const {
    const size_t size = texts_.filler.size(), whole = bytes / texts_.byte_ends.back() * size;
    const auto more = std::views::iota(whole + 1, whole + size + 1);
    return *std::ranges::partition_point(more, [&](size_t count) { return num_bytes(count) <= bytes; }) - 1;
  }

  // Bytes of filler, by the tokens that those tried last have taken; at first by those of the text without filler.
  double guess(size_t text_bytes, int64_t num_tokens, int64_t length) {
    if (next == 0) tokens_without_ = num_tokens;
    const auto room = static_cast<double>(length - tokens_without_);
    if (next == 0) return room * static_cast<double>(text_bytes) / static_cast<double>(std::max<int64_t>(num_tokens, 1));
    return room * static_cast<double>(num_bytes(next)) / static_cast<double>(std::max<int64_t>(num_tokens - tokens_without_, 1));
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
                     .filler = {},
                     .filler_source = (filler_file.empty() ? path : filler_file).string(),
                     .sentence_ends = {},
                     .byte_ends = {}};
  std::string filler = filler_file.empty() ? text_at(tree, "filler", path.string()) : read_file(filler_file);
  if (valid_utf8_prefix(filler) != filler.size()) throw DataError("{}: not UTF-8", texts.filler_source);
  texts.filler = words_of(filler);
  if (texts.filler.empty()) throw DataError("{}: no words: text is needed to hide the key in", texts.filler_source);
  size_t bytes = 0;
  for (size_t i = 0; i < texts.filler.size(); ++i) {
    bytes += texts.filler[i].size() + 1;
    texts.byte_ends.push_back(bytes);
    if (ends_sentence(texts.filler[i])) texts.sentence_ends.push_back(i + 1);
  }
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
  for (Draft& draft : drafts) {
    draft.check(length);
    prompts.push_back(std::move(draft.best));
  }
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
