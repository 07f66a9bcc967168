#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "base/json_limits.h"
#include "tokenizer/rust.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm {

namespace {

// A text, or a list of {"name", "template"} of which "default" is for plain conversations.
std::string template_source(const io::TokenizerFiles& files) {
  const auto it = files.tokenizer_config.find("chat_template");
  if (it == files.tokenizer_config.end() || it->is_null()) {
    throw DataError("{}: the tokenizer has no chat_template: use a model that was tuned for conversations, or plain text", files.origin);
  }
  if (it->is_string()) return it->get<std::string>();
  if (it->is_array()) {
    for (const json& entry : *it) {
      if (entry.is_object() && get_or<std::string>(entry, "name", "", files.origin + ": chat_template") == "default")
        return require<std::string>(entry, "template", files.origin);
    }
  }
  throw DataError("{}: chat_template must be a text, or a list that has an entry named 'default'", files.origin);
}

// A token as text, or as an object that holds it.
template <typename Json>
std::string content_of(const Json& token, const std::string& where) {
  if (token.is_string()) return token.template get<std::string>();
  if (!token.is_object()) return "";
  const auto content = token.find("content");
  if (content == token.end() || content->is_null()) return "";
  if (!content->is_string()) throw DataError("{}: the 'content' of a special token is not a text", where);
  return content->template get<std::string>();
}

// What `transformers` gives a template besides the messages: the special tokens by their names.
json special_tokens(const json& config, const std::string& where) {
  json tokens = json::object();
  constexpr std::array kNames = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
  for (const char* name : kNames) {
    const auto it = config.find(name);
    if (it != config.end() && !content_of(*it, where).empty()) tokens[name] = content_of(*it, where);
  }
  return tokens;
}

// tokenizer.json without its vocabulary and merges: of the outermost keys only `added_tokens` is kept while it is parsed.
nlohmann::json parse_added_tokens(const std::string& tokenizer_json, const std::string& where) {
  const auto keep = [](int depth, nlohmann::json::parse_event_t event, const nlohmann::json& key) {
    return depth != 1 || event != nlohmann::json::parse_event_t::key || key == "added_tokens";
  };
  const auto parsed = parse_unordered_json(tokenizer_json, where, keep);
  const auto tokens = parsed.find("added_tokens");
  return tokens == parsed.end() ? nlohmann::json() : *tokens;
}

// Every added token, longest first: one of them ends a turn.
std::vector<std::string> added_tokens(const io::TokenizerFiles& files) {
  std::vector<std::string> tokens;
  const auto add = [&](const auto& token) {
    if (std::string content = content_of(token, files.origin); !content.empty()) tokens.push_back(std::move(content));
  };
  if (!files.tokenizer_json.empty()) {
    const nlohmann::json added = parse_added_tokens(files.tokenizer_json, files.origin);
    if (added.is_array()) std::for_each(added.begin(), added.end(), add);
  }
  if (const auto it = files.tokenizer_config.find("added_tokens_decoder"); it != files.tokenizer_config.end() && it->is_object()) {
    std::for_each(it->begin(), it->end(), add);
  }
  if (const auto it = files.tokenizer_config.find("eos_token"); it != files.tokenizer_config.end()) add(*it);
  std::ranges::sort(tokens, [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
  return tokens;
}

constexpr std::string_view kSpace = " \t\r\n";

struct Range {
  size_t begin = 0, end = 0;
};

// Marks that a template carries along unread: a number between two characters for private use that no message has.
class Marks {
 public:
  explicit Marks(const std::vector<ChatMessage>& messages) {
    for (unsigned code = 0xE000; code <= 0xF8FF && characters_.size() < 2; ++code) {
      const std::string character = {static_cast<char>(0xE0 | (code >> 12)), static_cast<char>(0x80 | ((code >> 6) & 0x3F)),
                                     static_cast<char>(0x80 | (code & 0x3F))};
      const auto has = [&](const ChatMessage& message) { return message.content.find(character) != std::string::npos; };
      if (std::ranges::none_of(messages, has)) characters_.push_back(character);
    }
    if (characters_.size() < 2) {
      throw DataError("a conversation holds (nearly) every character for private use (U+E000 to U+F8FF): its answers cannot be marked");
    }
  }

  [[nodiscard]] std::string begin(size_t message) const { return mark(2 * message); }
  [[nodiscard]] std::string end(size_t message) const { return mark(2 * message + 1); }

  // Takes every mark out of `text`; the places where the marks stood (the last one of each), counted without marks.
  std::map<std::string, size_t> take_out(std::string& text) const {
    std::map<std::string, size_t> places;
    std::string clean;
    size_t at = 0;
    for (size_t open = text.find(characters_[0]); open != std::string::npos; open = text.find(characters_[0], at)) {
      const size_t close = text.find(characters_[1], open);
      if (close == std::string::npos) break;
      clean.append(text, at, open - at);
      at = close + characters_[1].size();
      places[text.substr(open, at - open)] = clean.size();
    }
    text = clean.append(text, at);
    return places;
  }

 private:
  [[nodiscard]] std::string mark(size_t number) const { return fmt::format("{}{}{}", characters_.at(0), number, characters_.at(1)); }

  std::vector<std::string> characters_;
};

// A template may drop the beginning of a content (its reasoning, in past turns). What it kept ends at `end` in `rendered`: it is
// as far back as both agree, without the header of the turn, and without the space before it when the header is not known.
size_t begin_of_rest(const std::string& rendered, size_t end, const std::string& marked_content, const std::string& end_mark,
                     const std::string& header) {
  size_t begin = end;
  for (size_t at = marked_content.find(end_mark); at > 0 && begin > 0 && marked_content[at - 1] == rendered[begin - 1]; --at) --begin;
  const size_t place = header.empty() ? std::string::npos : rendered.rfind(header, end);
  if (place == std::string::npos) return std::min(rendered.find_first_not_of(kSpace, begin), end);
  return std::max(begin, std::min(place + header.size(), end));
}

}  // namespace

struct ChatTemplate::Impl {
  std::string origin;
  json special;
  std::vector<std::string> turn_ends;
  rust::TemplateHandle handle;

  explicit Impl(const io::TokenizerFiles& files)
      : origin(files.origin), special(special_tokens(files.tokenizer_config, files.origin)), turn_ends(added_tokens(files)) {
    const std::string source = template_source(files);
    rust::Error error;
    if (!dx_template_compile(rust::text(source), handle.out(), error.out())) {
      throw DataError("{}: chat_template: {}", origin, error.message());
    }
  }

  [[nodiscard]] std::string render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const {
    json context = {
        {"messages", json::array()}, {"tools", nullptr}, {"documents", nullptr}, {"add_generation_prompt", add_generation_prompt}};
    for (const ChatMessage& message : messages) {
      context["messages"].push_back({{"role", message.role}, {"content", message.content}});
    }
    context.update(special);
    std::string text;
    try {
      text = context.dump();
    } catch (const json::exception&) {
      throw DataError("{}: chat_template: a message is not UTF-8", origin);
    }
    rust::String rendered;
    rust::Error error;
    if (!dx_template_render(handle.get(), rust::text(text), rendered.out(), error.out())) {
      throw DataError("{}: chat_template: {}", origin, error.message());
    }
    return rendered.str();
  }

  // Where the answers' contents stand in `rendered`, found by rendering again with marks around them. With `inside_space` the
  // marks stand inside the spaces around a content, for templates that trim. None when the marks change what is written.
  [[nodiscard]] std::optional<std::vector<Range>> find_contents(const std::vector<ChatMessage>& messages, const std::string& rendered,
                                                                bool inside_space) const;
  [[nodiscard]] size_t end_of_turn(const std::string& rendered, size_t content_end) const;
};

std::optional<std::vector<Range>> ChatTemplate::Impl::find_contents(const std::vector<ChatMessage>& messages, const std::string& rendered,
                                                                    bool inside_space) const {
  const Marks marks(messages);
  std::vector<ChatMessage> marked = messages;
  std::vector<size_t> answers;
  for (size_t i = 0; i < messages.size(); ++i) {
    std::string& content = marked[i].content;
    const size_t first = content.find_first_not_of(kSpace);
    if (messages[i].role != "assistant" || first == std::string::npos) continue;
    const size_t end = inside_space ? content.find_last_not_of(kSpace) + 1 : content.size();
    content.insert(end, marks.end(i));
    content.insert(inside_space ? first : 0, marks.begin(i));
    answers.push_back(i);
  }
  std::string text = render(marked, false);
  const std::map<std::string, size_t> places = marks.take_out(text);
  if (text != rendered) return std::nullopt;
  const std::string prompted = render(messages, true);
  const std::string header = prompted.starts_with(rendered) ? prompted.substr(rendered.size()) : "";
  std::vector<Range> ranges;
  for (const size_t i : answers) {
    const auto end = places.find(marks.end(i));
    if (end == places.end()) continue;  // the template left this answer out
    const auto begin = places.find(marks.begin(i));
    ranges.push_back({begin != places.end() ? begin->second : begin_of_rest(rendered, end->second, marked[i].content, marks.end(i), header),
                      end->second});
  }
  return ranges;
}

size_t ChatTemplate::Impl::end_of_turn(const std::string& rendered, size_t content_end) const {
  const size_t token = std::min(rendered.find_first_not_of(kSpace, content_end), rendered.size());
  const std::string_view rest = std::string_view(rendered).substr(token);
  for (const std::string& end : turn_ends) {
    if (rest.starts_with(end)) return token + end.size();
  }
  return content_end;
}

ChatTemplate::ChatTemplate(const io::TokenizerFiles& files) : impl_(std::make_unique<Impl>(files)) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const {
  return impl_->render(messages, add_generation_prompt);
}

std::vector<ChatSpan> ChatTemplate::render_spans(const std::vector<ChatMessage>& messages) const {
  const std::string rendered = impl_->render(messages, false);
  std::optional<std::vector<Range>> contents = impl_->find_contents(messages, rendered, false);
  if (!contents) contents = impl_->find_contents(messages, rendered, true);
  if (!contents) {
    throw DataError("{}: chat_template: it changes the assistant's messages, so the answers cannot be found in what it writes",
                    impl_->origin);
  }
  std::vector<ChatSpan> spans;
  const auto add = [&](size_t begin, size_t end, bool is_answer) {
    if (end > begin) spans.push_back({rendered.substr(begin, end - begin), is_answer});
  };
  size_t done = 0;
  for (const Range& content : *contents) {
    const size_t begin = std::max(content.begin, done);
    const size_t end = impl_->end_of_turn(rendered, content.end);
    add(done, begin, false);
    add(begin, end, true);
    done = std::max(done, end);
  }
  add(done, rendered.size(), false);
  return spans;
}

}  // namespace distil_xlstm
