// distil-xlstm generate: text from any model.
#include <iostream>

#include "base/error.h"
#include "base/signals.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/loaded_model.h"
#include "generate/generator.h"

namespace distil_xlstm::cli {
namespace {

struct Options {
  std::string model, prompt, prompt_file, system, device = "auto", precision = "auto", json_path;
  bool chat = false, quiet = false, ignore_eos = false;
  generate::GenerateOptions generate;
};

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

void print_statistics(const generate::GenerateResult& result) {
  const auto decoded = static_cast<double>(result.tokens.size());
  fmt::print(stderr, "prompt {} tokens, {:.1f} tokens/s; generated {} tokens, {:.1f} tokens/s; state {}; {}\n", result.prompt_tokens,
             static_cast<double>(result.prompt_tokens) / std::max(result.prompt_seconds, 1e-9), result.tokens.size(),
             decoded / std::max(result.decode_seconds, 1e-9), format_bytes(static_cast<double>(result.state_bytes)), result.finish_reason);
}

json to_json(const generate::GenerateResult& result) {
  return {{"text", result.text},
          {"tokens", result.tokens},
          {"finish_reason", result.finish_reason},
          {"prompt_tokens", result.prompt_tokens},
          {"prompt_seconds", result.prompt_seconds},
          {"decode_seconds", result.decode_seconds},
          {"tokens_per_second", static_cast<double>(result.tokens.size()) / std::max(result.decode_seconds, 1e-9)},
          {"state_bytes", result.state_bytes}};
}

// Answers of one conversation on the terminal, a line a turn, until the input ends.
void chat(const LoadedModel& loaded, const Options& options) {
  const Tokenizer& tokenizer = loaded.require_tokenizer();
  const ChatTemplate chat_template(tokenizer.files());
  std::vector<ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  std::string line = options.prompt;
  const bool is_single = !line.empty();
  const auto read_turn = [&] {
    if (is_single) return messages.empty() || messages.back().role == "system";
    if (!options.quiet) std::cerr << "> ";
    return static_cast<bool>(std::getline(std::cin, line));
  };
  while (read_turn()) {
    messages.push_back({"user", line});
    const auto prompt = tokenizer.encode(chat_template.render(messages, true));
    const auto result = generate::generate(*loaded.model, tokenizer, prompt, options.generate,
                                           [](const std::string& text) { std::cout << text << std::flush; });
    std::cout << std::endl;
    if (!options.quiet) print_statistics(result);
    messages.push_back({"assistant", result.text});
    throw_if_interrupted();
  }
}

void complete(const LoadedModel& loaded, const Options& options) {
  const Tokenizer& tokenizer = loaded.require_tokenizer();
  const std::string text = options.prompt_file.empty() ? unescape(options.prompt) : read_file(options.prompt_file);
  std::vector<int32_t> prompt = tokenizer.encode(text);
  // Documents begin as they did in training; a model without BOS starts an empty prompt from its end-of-text token.
  if (tokenizer.adds_bos() && tokenizer.bos_id()) prompt.insert(prompt.begin(), *tokenizer.bos_id());
  if (prompt.empty()) {
    const auto start = tokenizer.bos_id() ? tokenizer.bos_id() : tokenizer.eos_id();
    if (!start) throw ConfigError("--prompt is empty, and the tokenizer has no BOS or EOS to start from: give a text");
    prompt.push_back(*start);
  }
  if (options.json_path.empty() || options.json_path != "-") std::cout << text << std::flush;
  const auto result = generate::generate(*loaded.model, tokenizer, prompt, options.generate, [&](const std::string& piece) {
    if (options.json_path != "-") std::cout << piece << std::flush;
  });
  if (options.json_path == "-") {
    std::cout << to_json(result).dump(2) << "\n";
  } else {
    std::cout << std::endl;
    if (!options.json_path.empty()) write_json(options.json_path, to_json(result));
  }
  if (!options.quiet) print_statistics(result);
  throw_if_interrupted();
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto& generate = options->generate;
  auto& sampling = generate.sampling;
  CLI::App* command = app.add_subcommand("generate", "Write text with a student or a teacher");
  command->add_option("--model,-m", options->model, "Run, checkpoint, Hugging Face directory, GGUF file or built-in name")->required();
  auto* prompt = command->add_option("--prompt,-p", options->prompt, "Text to continue (\\n and \\t are understood)");
  command->add_option("--prompt-file", options->prompt_file, "File with the text to continue")->check(CLI::ExistingFile)->excludes(prompt);
  command->add_flag("--chat", options->chat,
                    "Converse through the model's chat template: turns from standard input, or --prompt as the only one");
  command->add_option("--system", options->system, "System message of a conversation");
  command->add_option("--max-new-tokens,-n", generate.max_new_tokens, "Tokens to write at most")->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "0 = greedy")->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Keep the k likeliest tokens; 0 = all")->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "Keep the likeliest tokens that reach this probability together")->capture_default_str();
  command->add_option("--min-p", sampling.min_p, "Drop tokens below this share of the likeliest one")->capture_default_str();
  command->add_option("--repetition-penalty", sampling.repetition_penalty, "1 = none")->capture_default_str();
  command->add_option("--seed", sampling.seed, "Same seed, same text")->capture_default_str();
  command->add_option("--stop", generate.stop, "End before this text (may be given several times)");
  command->add_flag("--ignore-eos", options->ignore_eos, "Go on after an end-of-text token");
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  command->add_option("--precision", options->precision, "auto, fp32, bf16 or fp16")->capture_default_str();
  command->add_option("--json", options->json_path,
                      "Write text, tokens and timings to this file (- = standard output, instead of the text)");
  command->add_flag("--quiet,-q", options->quiet, "No statistics");
  command->callback([options] {
    generate::check(options->generate.sampling);
    const SignalGuard guard;
    const LoadedModel loaded = load_model(options->model, options->device, options->precision);
    if (!options->ignore_eos) options->generate.stop_ids = generate::end_of_text_ids(loaded.files, loaded.require_tokenizer());
    if (options->chat) {
      chat(loaded, *options);
    } else {
      complete(loaded, *options);
    }
  });
}

}  // namespace distil_xlstm::cli
