// distil-xlstm tokenize: what a model's tokenizer makes of a text.
#include <iostream>
#include <iterator>

#include "base/log.h"
#include "base/printable.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/counted.h"
#include "io/model_files.h"
#include "io/model_files_tokenizer.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/document_borders.h"

namespace distil_xlstm::cli {
namespace {

struct Options {
  std::string model;
  std::vector<std::string> texts;
  bool as_json = false, jsonl = false, chat = false, count = false, decode = false;
  bool special_tokens = false, plain = false, generation_prompt = false;
};

// A directory needs no weights to show its tokenizer.
Tokenizer open_tokenizer(const std::string& model) {
  if (auto files = io::read_tokenizer_files({model})) return Tokenizer(*files);
  const io::ModelFiles files = io::open_model(model);
  if (!files.tokenizer) throw DataError("{}: there is no tokenizer.json", files.path.string());
  return Tokenizer(*files.tokenizer);
}

void check_utf8(std::string_view text, std::string_view where) {
  const size_t valid = valid_utf8_prefix(text);
  if (valid != text.size()) throw DataError("{}: not UTF-8 at byte {}", where, valid);
}

std::string read_stdin() {
  std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  check_utf8(text, "standard input");
  return text;
}

// One JSON value a line of standard input; empty lines are left out.
std::vector<json> read_lines() {
  std::vector<json> values;
  std::string line;
  for (int64_t number = 1; std::getline(std::cin, line); ++number) {
    const auto where = fmt::format("standard input, line {}", number);
    check_utf8(line, where);
    if (!line.empty()) values.push_back(parse_json(line, where));
  }
  return values;
}

std::string text_of(const json& value) {
  return value.is_string() ? value.get<std::string>() : require<std::string>(value, "text", "standard input");
}

std::vector<std::string> read_texts(const Options& options) {
  std::vector<std::string> texts;
  if (options.jsonl) {
    for (const json& value : read_lines()) texts.push_back(text_of(value));
    return texts;
  }
  for (const std::string& text : options.texts) {
    if (text != "-") check_utf8(text, "TEXT");
    texts.push_back(text == "-" ? read_stdin() : text);
  }
  if (texts.empty()) texts.push_back(read_stdin());
  return texts;
}

void print_ids(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool as_json) {
  if (as_json) {
    json pieces = json::array();
    for (const int32_t id : ids) pieces.push_back(tokenizer.piece(id));
    fmt::print("{}\n", json{{"ids", ids}, {"pieces", pieces}}.dump());
    return;
  }
  for (const int32_t id : ids) fmt::print("{:>8}  {}\n", id, printable(tokenizer.piece(id)));
}

void tokenize(const Tokenizer& tokenizer, const Options& options) {
  const std::vector<std::string> texts = read_texts(options);
  const auto& prefix = tokenizer.prefix_ids();
  uint64_t num_repeated = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    if (i > 0 && !options.as_json) fmt::print("\n");
    const auto ids = tokenizer.encode(texts[i], options.special_tokens, !options.plain);
    print_ids(tokenizer, ids, options.as_json);
    if (options.special_tokens && begins_with(std::span(ids).subspan(prefix.size()), prefix)) ++num_repeated;
  }
  warn_of_repeated_prefix("TEXT", prefix, num_repeated);
}

void count(const Tokenizer& tokenizer, const Options& options) {
  const std::vector<std::string> texts = read_texts(options);
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  size_t size_bytes = 0, num_tokens = 0;
  for (const std::string& text : texts) size_bytes += text.size();
  const double start = monotonic_seconds();
  for (const auto& ids : tokenizer.encode_batch(views, options.special_tokens)) num_tokens += ids.size();
  const double seconds = monotonic_seconds() - start;
  if (options.as_json) {
    fmt::print("{}\n", json{{"texts", texts.size()}, {"bytes", size_bytes}, {"tokens", num_tokens}, {"seconds", seconds}}.dump());
    return;
  }
  const double per_second = static_cast<double>(size_bytes) / std::max(seconds, 1e-9);
  fmt::print("{}, {}, {}, {:.2f} bytes a token, {}/s\n", counted(static_cast<int64_t>(texts.size()), "text"),
             counted(static_cast<int64_t>(size_bytes), "byte"), counted(static_cast<int64_t>(num_tokens), "token"),
             static_cast<double>(size_bytes) / static_cast<double>(std::max<size_t>(num_tokens, 1)), format_bytes(per_second));
}

void decode(const Tokenizer& tokenizer, const Options& options) {
  for (const json& value : read_lines()) {
    const json ids = value.is_object() ? value : json{{"ids", value}};
    const auto listed = require<json>(ids, "ids", "standard input");
    if (!listed.is_array()) throw DataError("standard input: ids = {}: must be a list of integers", listed.dump());
    std::vector<int32_t> list;
    for (const json& id : listed) {
      if (!holds<int32_t>(id)) throw DataError("standard input: id {}: must be an integer", id.dump());
      list.push_back(id.get<int32_t>());
      if (list.back() < 0 || tokenizer.piece(list.back()).empty())
        throw DataError("standard input: id {} lies outside the tokenizer's vocabulary of {}", list.back(), tokenizer.vocab_size());
    }
    const std::string text = tokenizer.decode(list);
    if (options.as_json) {
      fmt::print("{}\n", json{{"text", text}}.dump());
    } else {
      fmt::print("{}\n", text);
    }
  }
}

Conversation read_conversation(json value) {
  Conversation conversation;
  if (!value.is_object() && !value.is_array())
    throw DataError("standard input: a conversation is a list of messages, or an object with 'messages'");
  if (const auto problem = take_conversation(std::move(value), "messages", conversation); !problem.empty())
    throw DataError("standard input: {}", problem);
  return conversation;
}

void render_chat(const Tokenizer& tokenizer, const Options& options) {
  const ChatTemplate chat_template(tokenizer.files());
  std::vector<json> values = options.jsonl ? read_lines() : std::vector{parse_json(read_stdin(), "standard input")};
  for (json& value : values) {
    const Conversation conversation = read_conversation(std::move(value));
    const std::string text = chat_template.render(conversation, options.generation_prompt);
    if (!options.as_json) {
      fmt::print("{}", text);
      continue;
    }
    const auto [answers, num_missing_answers] = chat_template.render_spans(conversation);
    json spans = json::array();
    std::string whole;
    for (const ChatSpan& span : answers) {
      spans.push_back({{"text", span.text}, {"is_answer", span.is_answer}});
      whole += span.text;
    }
    const std::string_view view = whole;
    const EncodedText encoded = tokenizer.encode_ranges({&view, 1}).front();
    json printed = {{"text", text}, {"ids", tokenizer.encode(text)}, {"spans", spans}};
    if (whole == text) printed["counts"] = answer_mask(encoded, answers);  // of each id
    if (num_missing_answers > 0) printed["missing_answers"] = num_missing_answers;
    fmt::print("{}\n", printed.dump());
  }
}

void run(const Options& options) {
  if (!options.texts.empty() && (options.jsonl || options.chat || options.decode))
    throw ConfigError("TEXT: not with --jsonl, --chat or --decode, which read standard input");
  const Tokenizer tokenizer = open_tokenizer(options.model);
  if (options.chat) {
    render_chat(tokenizer, options);
  } else if (options.decode) {
    decode(tokenizer, options);
  } else if (options.count) {
    count(tokenizer, options);
  } else {
    tokenize(tokenizer, options);
  }
}

}  // namespace

void add_tokenize_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("tokenize", "Print the ids and pieces of a text");
  command->add_option("--model,-m", options->model, "Any model, or a directory with a tokenizer.json")->required();
  command->add_option("TEXT", options->texts, "Texts; '-' or none: standard input");
  command->add_flag("--json", options->as_json, "Print one JSON object a text");
  auto* jsonl = command->add_flag("--jsonl", options->jsonl, "Standard input holds one JSON text, or object with 'text', a line");
  auto* chat = command->add_flag("--chat", options->chat, "Standard input holds messages as JSON: print them as the chat template does");
  auto* count = command->add_flag("--count", options->count, "Only count the tokens, with the speed");
  auto* decode = command->add_flag("--decode", options->decode, "Standard input holds a JSON list of ids a line: print their text");
  command->add_flag("--add-special-tokens", options->special_tokens, "Add the tokens that the tokenizer puts around a text");
  auto* plain = command->add_flag("--plain", options->plain, "Special tokens written in the text are plain text");
  command->add_flag("--add-generation-prompt", options->generation_prompt, "With --chat: end with the header of an answer")->needs(chat);
  chat->excludes(count)->excludes(decode);
  decode->excludes(count)->excludes(jsonl)->excludes(plain);
  plain->excludes(count)->excludes(chat);
  command->callback([options] { run(*options); });
}

}  // namespace distil_xlstm::cli
