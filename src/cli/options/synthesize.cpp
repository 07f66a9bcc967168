#include "cli/options/synthesize.h"

#include <memory>

#include "cli/commands.h"
#include "cli/compute_commands.h"
#include "cli/option_checks.h"

namespace distil_xlstm::cli {

void add_synthesize_command(CLI::App& app) {
  auto options = std::make_shared<SynthesizeOptions>();
  auto& sampling = options->synthesize.sampling;
  CLI::App* command = app.add_subcommand("synthesize", "Let a teacher write training text into token shards");
  command->add_option("--model,-m", options->model, "Run, checkpoint, Hugging Face directory, GGUF file or built-in name")->required();
  command->add_option("--output,-o", options->output, "Directory of the shards (an interrupted run goes on there)")->required();
  command->add_option("--max-tokens", options->max_tokens, "Tokens to write (1M, 512k); a greater number later goes on with what is there")
      ->capture_default_str();
  command->add_option("--prompt", options->prompt, "What every document begins with (BOS goes before it where the tokenizer adds one)");
  command->add_option("--context-length", options->context_length, "Of the rows")->check(at_least(1))->capture_default_str();
  command->add_option("--document-end", options->document_end, "none, eos or a token put after each document")->capture_default_str();
  command->add_option("--max-document-tokens", options->synthesize.max_document_tokens, "A document is cut there")
      ->check(at_least(1))
      ->capture_default_str();
  command->add_option("--batch-size", options->synthesize.batch_size, "Documents at a time")->check(at_least(1))->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "1 = the model's own distribution")->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Keep the k likeliest tokens; 0 = all")->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "Keep the likeliest tokens that reach this probability together")->capture_default_str();
  command->add_option("--min-p", sampling.min_p, "Drop tokens below this share of the likeliest one")->capture_default_str();
  command->add_option("--seed", sampling.seed, "Same seed, same text")->check(at_least(0))->capture_default_str();
  command->add_flag("--validation", options->is_validation, "Write the validation split");
  command->add_flag("--overwrite", options->overwrite, "Begin again where the directory holds other text");
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")->check(device_name())->capture_default_str();
  command->add_option("--precision", options->precision, "auto, fp32, bf16 or fp16")->check(precision_name())->capture_default_str();
  command->callback([options] { compute_commands().run_synthesize(*options); });
}

}  // namespace distil_xlstm::cli
