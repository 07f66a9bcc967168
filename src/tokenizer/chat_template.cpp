#include "tokenizer/chat_template.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "base/json_limits.h"
#include "tokenizer/chat_answers.h"
#include "tokenizer/rust.h"

namespace distil_xlstm {

namespace {

// A text, or a list of {"name", "template"}: "default" is for plain conversations, "tool_use" for those with tools.
struct TemplateSources {
  std::string plain;
  std::optional<std::string> with_tools;
};

TemplateSources template_sources(const io::TokenizerFiles& files) {
  const auto it = files.tokenizer_config.find("chat_template");
  if (it == files.tokenizer_config.end() || it->is_null()) {
    throw DataError("{}: the tokenizer has no chat_template: use a model that was tuned for conversations, or plain text", files.origin);
  }
  if (it->is_string()) return {it->get<std::string>(), std::nullopt};
  std::map<std::string, std::string> named;
  if (it->is_array()) {
    for (const json& entry : *it) {
      if (!entry.is_object()) continue;
      named[get_or<std::string>(entry, "name", "", files.origin + ": chat_template")] =
          require<std::string>(entry, "template", files.origin);
    }
  }
  if (!named.contains("default"))
    throw DataError("{}: chat_template must be a text, or a list that has an entry named 'default'", files.origin);
  TemplateSources sources{named["default"], std::nullopt};
  if (named.contains("tool_use")) sources.with_tools = named["tool_use"];
  return sources;
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

// Every added token, longest first: one of them ends a turn.
std::vector<std::string> added_tokens(const io::TokenizerFiles& files) {
  std::vector<std::string> tokens;
  const auto add = [&](const auto& token) {
    if (std::string content = content_of(token, files.origin); !content.empty()) tokens.push_back(std::move(content));
  };
  if (!files.tokenizer_json.empty()) {
    const UnorderedJson parsed = parse_unordered_json(files.tokenizer_json, files.origin);
    const auto added = parsed.find("added_tokens");
    if (added != parsed.end() && added->is_array()) std::for_each(added->begin(), added->end(), add);
  }
  if (const auto it = files.tokenizer_config.find("added_tokens_decoder"); it != files.tokenizer_config.end() && it->is_object()) {
    std::for_each(it->begin(), it->end(), add);
  }
  if (const auto it = files.tokenizer_config.find("eos_token"); it != files.tokenizer_config.end()) add(*it);
  std::ranges::sort(tokens, [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
  return tokens;
}

constexpr const char* kNoPlaceForParts = "'content' is a list of parts, and the template has no place for one: write it as one string";

bool has_parts(const Conversation& conversation) {
  const auto is_list = [](const json& message) { return message.contains("content") && message["content"].is_array(); };
  return std::ranges::any_of(conversation.messages, is_list);
}

// Whether a template wrote a list of parts as Python prints it, which no model has read in training.
bool writes_parts_as_python(const Conversation& conversation, const std::string& rendered, const std::string& text) {
  constexpr std::string_view kPart = "[{'type': ";
  return has_parts(conversation) && rendered.find(kPart) != std::string::npos && text.find(kPart) == std::string::npos;
}

}  // namespace

struct ChatTemplate::Impl {
  std::string origin;
  json special;
  std::vector<std::string> turn_ends;
  rust::TemplateHandle plain;
  rust::TemplateHandle with_tools;

  explicit Impl(const io::TokenizerFiles& files)
      : origin(files.origin), special(special_tokens(files.tokenizer_config, files.origin)), turn_ends(added_tokens(files)) {
    const TemplateSources sources = template_sources(files);
    compile(sources.plain, plain);
    if (sources.with_tools) compile(*sources.with_tools, with_tools);
  }

  void compile(const std::string& source, rust::TemplateHandle& handle) const {
    rust::Error error;
    if (!dx_template_compile(rust::text(source), handle.out(), error.out())) {
      throw DataError("{}: chat_template: {}", origin, error.message());
    }
  }

  [[nodiscard]] const DxTemplate* handle_for(const Conversation& conversation) const {
    const bool has_tools = conversation.variables.is_object() && conversation.variables.contains("tools");
    return has_tools && with_tools.get() != nullptr ? with_tools.get() : plain.get();
  }

  // The variables of the template, as JSON.
  [[nodiscard]] std::string context_of(const Conversation& conversation, bool add_generation_prompt) const {
    json context = {
        {"messages", conversation.messages}, {"tools", nullptr}, {"documents", nullptr}, {"add_generation_prompt", add_generation_prompt}};
    context.update(special);
    if (conversation.variables.is_object()) context.update(conversation.variables);
    try {
      return context.dump();
    } catch (const json::exception&) {
      throw DataError("{}: chat_template: a message is not UTF-8", origin);
    }
  }

  [[nodiscard]] std::string render(const Conversation& conversation, bool add_generation_prompt) const {
    const std::string context = context_of(conversation, add_generation_prompt);
    rust::String rendered;
    rust::Error error;
    if (!dx_template_render(handle_for(conversation), rust::text(context), rendered.out(), error.out())) {
      const std::string hint = has_parts(conversation) ? fmt::format(" (perhaps since {})", kNoPlaceForParts) : "";
      throw DataError("{}: chat_template: {}{}", origin, error.message(), hint);
    }
    if (writes_parts_as_python(conversation, rendered.str(), context)) throw DataError("{}: chat_template: {}", origin, kNoPlaceForParts);
    return rendered.str();
  }

  // What the template itself marks as written by the assistant.
  [[nodiscard]] FoundAnswers generated(const Conversation& conversation, const std::string& rendered) const;
  [[nodiscard]] FoundAnswers answers(const Conversation& conversation, const std::string& rendered) const;
};

FoundAnswers ChatTemplate::Impl::answers(const Conversation& conversation, const std::string& rendered) const {
  const auto again = [this](const Conversation& other, bool add_generation_prompt) { return render(other, add_generation_prompt); };
  auto found = find_answers(conversation, rendered, again, turn_ends);
  if (!found) {
    throw DataError("{}: chat_template: it changes the assistant's messages, so the answers cannot be found in what it writes", origin);
  }
  return std::move(*found);
}

FoundAnswers ChatTemplate::Impl::generated(const Conversation& conversation, const std::string& rendered) const {
  const std::string context = context_of(conversation, false);
  rust::String text;
  rust::Ranges marked;
  rust::Error error;
  if (!dx_template_render_marked(handle_for(conversation), rust::text(context), text.out(), marked.out(), error.out())) {
    throw DataError("{}: chat_template: {}", origin, error.message());
  }
  if (text.str() != rendered) throw DataError("{}: chat_template: it changes what its generation marks enclose", origin);
  FoundAnswers found;
  for (size_t i = 0; i < marked.size(); ++i) found.ranges.push_back({marked[i].first, marked[i].second});
  return found;
}

ChatTemplate::ChatTemplate(const io::TokenizerFiles& files) : impl_(std::make_unique<Impl>(files)) {}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(const Conversation& conversation, bool add_generation_prompt) const {
  return impl_->render(conversation, add_generation_prompt);
}

RenderedChat ChatTemplate::render_spans(const Conversation& conversation) const {
  const std::string rendered = impl_->render(conversation, false);
  const bool is_marked = dx_template_marks_generation(impl_->handle_for(conversation));
  const FoundAnswers found = is_marked ? impl_->generated(conversation, rendered) : impl_->answers(conversation, rendered);
  RenderedChat result;
  result.num_missing_answers = found.num_missing;
  const auto add = [&](size_t begin, size_t end, bool is_answer) {
    if (end > begin) result.spans.push_back({rendered.substr(begin, end - begin), is_answer});
  };
  size_t done = 0;
  for (const TextRange& range : found.ranges) {
    const size_t begin = std::max(range.begin, done);
    add(done, begin, false);
    add(begin, range.end, true);
    done = std::max(done, range.end);
  }
  add(done, rendered.size(), false);
  return result;
}

std::string chat_template_fingerprint(const io::TokenizerFiles& files) {
  const auto it = files.tokenizer_config.find("chat_template");
  if (it == files.tokenizer_config.end() || it->is_null()) return "";
  std::string text = it->is_string() ? it->get<std::string>() : it->dump();
  if (text.ends_with('\n')) text.pop_back();  // one at the end is no part of a template
  return xxh3_128_hex(text);
}

}  // namespace distil_xlstm
