// distil-xlstm generate: text from any model.
#include <iostream>

#include "base/error.h"
#include "base/signals.h"
#include "base/standard_streams.h"
#include "base/text.h"
#include "cli/counted.h"
#include "cli/options/generate.h"
#include "commands/compute.h"
#include "commands/json_output.h"
#include "generate/generator.h"
#include "load/model.h"
#include "student/student.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/document_borders.h"
#include "tokenizer/stop_ids.h"
#include "tokenizer/vocabulary.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::GenerateOptions;

// Backslash escapes that a shell user cannot type otherwise: \n, \t, \\.
std::string unescape(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      plain += text[i];
      continue;
    }
    const char next = text[++i];
    plain += next == 'n' ? '\n' : next == 't' ? '\t' : next;
    if (next != 'n' && next != 't' && next != '\\') plain.insert(plain.size() - 1, 1, '\\');
  }
  return plain;
}

// Whether a longer text has a larger state.
bool has_growing_state(const load::LoadedModel& loaded) {
  const auto* student = dynamic_cast<const student::Student*>(loaded.model.get());
  return student == nullptr || !student->shape().has_constant_state();
}

void print_statistics(const generate::GenerateResult& result, bool grows) {
  const auto decoded = static_cast<double>(result.tokens.size());
  std::cerr << fmt::format(
      "prompt {}, {:.1f} tokens/s; generated {}, {:.1f} tokens/s; state {}{}; {}\n", cli::counted(result.prompt_tokens, "token"),
      static_cast<double>(result.prompt_tokens) / std::max(result.prompt_seconds, 1e-9),
      cli::counted(static_cast<int64_t>(result.tokens.size()), "token"), decoded / std::max(result.decode_seconds, 1e-9),
      format_bytes(static_cast<double>(result.state_bytes)), grows ? ", which grows with the text" : "", result.finish_reason);
}

json to_json(const generate::GenerateResult& result, bool grows) {
  return {{"text", result.text},
          {"tokens", result.tokens},
          {"finish_reason", result.finish_reason},
          {"prompt_tokens", result.prompt_tokens},
          {"prompt_seconds", result.prompt_seconds},
          {"decode_seconds", result.decode_seconds},
          {"tokens_per_second", static_cast<double>(result.tokens.size()) / std::max(result.decode_seconds, 1e-9)},
          {"state_bytes", result.state_bytes},
          {"state_grows", grows}};
}

// What --prompt or --prompt-file holds.
std::string given_text(const Options& options) {
  return options.prompt_file.empty() ? unescape(options.prompt) : read_file(options.prompt_file);
}

// At once, and an error at once where nobody reads it any more.
void show(const std::string& text) {
  std::cout << text;
  check_output();
}

// Statistics, and the result as JSON where it was asked for. Throws Interrupted after a signal.
void finish(const load::LoadedModel& loaded, const generate::GenerateResult& result, const Options& options) {
  const bool grows = has_growing_state(loaded);
  if (options.json_path == "-") {
    std::cout << to_json(result, grows).dump(2, ' ', false, json::error_handler_t::replace) << "\n";
  } else {
    show("\n");
    if (!options.json_path.empty()) write_json(options.json_path, to_json(result, grows));
  }
  if (!options.quiet) print_statistics(result, grows);
  throw_if_interrupted();
}

// Answers of one conversation: to the given text alone, or on the terminal, a line a turn, until the input ends.
void chat(const load::LoadedModel& loaded, Options options) {
  const Tokenizer& tokenizer = loaded.require_tokenizer();
  const ChatTemplate chat_template(tokenizer.files());
  Conversation conversation{json::array(), nullptr};
  json& messages = conversation.messages;
  if (!options.system.empty()) messages.push_back(chat_message("system", unescape(options.system)));
  std::string text = given_text(options);
  const bool is_single = !text.empty();
  if (!is_single && !options.json_path.empty()) throw ConfigError("--json with --chat: needs --prompt or --prompt-file: one turn");
  options.generate.continues_text = false;
  const auto read_turn = [&] {
    if (is_single) return messages.empty() || messages.back()["role"] == "system";
    if (!options.quiet) std::cerr << "> ";
    if (!std::getline(std::cin, text)) return false;
    text = unescape(text);
    return true;
  };
  while (read_turn()) {
    messages.push_back(chat_message("user", text));
    const auto prompt = tokenizer.encode(chat_template.render(conversation, true));  // the template writes BOS where it is wanted
    load::warn_beyond_positions(loaded, static_cast<int64_t>(prompt.size()) + options.generate.max_new_tokens,
                                "prompt and --max-new-tokens");
    const auto result = generate::generate(*loaded.model, tokenizer, prompt, options.generate, [&](const std::string& piece) {
      if (options.json_path != "-") show(piece);
    });
    messages.push_back(chat_message("assistant", result.text));
    finish(loaded, result, options);
  }
}

void complete(const load::LoadedModel& loaded, const Options& options) {
  const Tokenizer& tokenizer = loaded.require_tokenizer();
  const std::string text = given_text(options);
  std::vector<int32_t> prompt = encode_prompt(tokenizer, text);
  if (prompt.empty()) {  // as a model without BOS: after the end of the text before
    const auto start = tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
    if (!start) throw ConfigError("--prompt is empty, and the tokenizer has no BOS or EOS to start from: give a text");
    prompt.push_back(*start);
  }
  load::warn_beyond_positions(loaded, static_cast<int64_t>(prompt.size()) + options.generate.max_new_tokens, "prompt and --max-new-tokens");
  check_rows(prompt, tokenizer, loaded.model->vocab_size(), options.model);
  if (options.json_path != "-") show(text);
  const auto result = generate::generate(*loaded.model, tokenizer, prompt, options.generate, [&](const std::string& piece) {
    if (options.json_path != "-") show(piece);
  });
  finish(loaded, result, options);
}

}  // namespace

void run_generate(const cli::GenerateOptions& options) {
  generate::check(options.generate.sampling);
  check_json_output(options.json_path, {options.prompt_file, options.model}, "finish_reason");
  const SignalGuard guard;
  const load::LoadedModel loaded = load::load_model(options.model, options.device, options.precision);
  Options with_stops = options;
  with_stops.generate.model_name = options.model;
  if (!options.ignore_eos) with_stops.generate.stop_ids = stop_ids(loaded.files, loaded.require_tokenizer());
  if (options.chat) {
    chat(loaded, std::move(with_stops));
  } else {
    complete(loaded, with_stops);
  }
  throw_if_interrupted();
}

}  // namespace distil_xlstm::commands
