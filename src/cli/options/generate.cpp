#include "cli/options/generate.h"

#include <memory>

#include "cli/commands.h"
#include "cli/compute_commands.h"
#include "cli/option_checks.h"

namespace distil_xlstm::cli {

void add_generate_command(CLI::App& app) {
  auto options = std::make_shared<GenerateOptions>();
  auto& generate = options->generate;
  auto& sampling = generate.sampling;
  CLI::App* command = app.add_subcommand("generate", "Write text with a student or a teacher");
  command->add_option("--model,-m", options->model, "Run, checkpoint, Hugging Face directory, GGUF file or built-in name")->required();
  auto* prompt =
      command->add_option("--prompt,-p", options->prompt, "Text to continue, or the turn to answer (\\n and \\t are understood)");
  command->add_option("--prompt-file", options->prompt_file, "File with that text, taken as it is")
      ->check(CLI::ExistingFile)
      ->excludes(prompt);
  auto* chat_flag = command->add_flag("--chat", options->chat,
                                      "Converse through the model's chat template: turns from standard input, or one, the prompt");
  command->add_option("--system", options->system, "With --chat: system message of the conversation")->needs(chat_flag);
  command->add_option("--max-new-tokens,-n", generate.max_new_tokens, "Tokens to write at most")->check(at_least(1))->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "0 = greedy")->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Keep the k likeliest tokens; 0 = all")->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "Keep the likeliest tokens that reach this probability together")->capture_default_str();
  command->add_option("--min-p", sampling.min_p, "Drop tokens below this share of the likeliest one")->capture_default_str();
  command->add_option("--repetition-penalty", sampling.repetition_penalty, "1 = none")->capture_default_str();
  command->add_option("--seed", sampling.seed, "Same seed, same text")->check(at_least(0))->capture_default_str();
  command->add_option("--stop", generate.stop, "End before this text (may be given several times)");
  command->add_flag("--ignore-eos", options->ignore_eos, "Go on after an end-of-text token");
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")->check(device_name())->capture_default_str();
  command->add_option("--precision", options->precision, "auto, fp32, bf16 or fp16")->check(precision_name())->capture_default_str();
  command
      ->add_option("--json", options->json_path, "Write text, tokens and timings to this file (- = standard output, instead of the text)")
      ->check(output_file());
  command->add_flag("--quiet,-q", options->quiet, "No statistics");
  command->callback([options] { compute_commands().run_generate(*options); });
}

}  // namespace distil_xlstm::cli
