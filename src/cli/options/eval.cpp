#include "cli/options/eval.h"

#include <memory>

#include "base/error.h"
#include "cli/commands.h"
#include "cli/compute_commands.h"
#include "cli/option_checks.h"
#include "config/choices.h"

namespace distil_xlstm::cli {
namespace {

// Beyond what any machine holds; what is computed of them stays far from overflow.
constexpr int64_t kMaxNewTokens = 1'000'000, kMaxPrompts = 1'000'000, kMaxBatchSize = 1'000'000;

}  // namespace

void add_eval_command(CLI::App& app) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "Measure perplexity on texts, or scores on tasks, also beside a teacher's");
  command->add_option("--model,-m", options->model, "Run, checkpoint, Hugging Face directory, GGUF file or built-in name")->required();
  command->add_option("--teacher", options->teacher,
                      "A second model: its perplexity, top-1 agreement and KL (of tasks: its scores) beside the first's");
  CLI::Option* text =
      command->add_option("--text", options->texts, "Files, directories or globs: a .txt file is one document, a JSONL row is one");
  CLI::Option* tasks =
      command
          ->add_option("--tasks", options->tasks,
                       "Tasks by name (piqa,arc_easy,...) or files that define some (*.toml), in place of --text: docs/eval.md")
          ->delimiter(',')
          ->excludes(text);
  command->add_option("--tasks-data", options->tasks_data, "Folder with the tasks' data sets (default: the current one)")->needs(tasks);
  command
      ->add_flag("--permute-options", options->permute_options,
                 "Also ask multiple choice with the options under letters, in every cyclic order: docs/eval.md")
      ->needs(tasks);
  CLI::Option* repetition =
      command->add_option("--repetition", options->repetition,
                          "With --text: how much greedy texts repeat themselves, after the beginnings of so many documents: docs/eval.md");
  repetition->check(at_least(1));
  command->add_option("--prompt-tokens", options->prompt_tokens, "With --repetition: tokens of a document that begin a text")
      ->check(at_least(1))
      ->capture_default_str()
      ->needs(repetition);
  command->add_option("--new-tokens", options->new_tokens, "With --repetition: tokens written at most")
      ->check(at_least(1))
      ->check(at_most(kMaxNewTokens))
      ->capture_default_str()
      ->needs(repetition);
  CLI::Option* passkey =
      command
          ->add_option(
              "--passkey", options->passkey,
              "Pass-key retrieval at these lengths in tokens (512,1024,2048), in place of --text, with speed and memory: docs/eval.md")
          ->delimiter(',')
          ->excludes(text)
          ->excludes(tasks);
  command->add_option("--passkey-prompts", options->passkey_prompts, "Prompts of each length")
      ->check(at_least(1))
      ->check(at_most(kMaxPrompts))
      ->capture_default_str()
      ->needs(passkey);
  command
      ->add_option("--passkey-filler", options->passkey_filler, "Text file to hide the keys in (default: a few plain sentences, repeated)")
      ->needs(passkey);
  command->add_option("--seed", options->seed, "Of keys and their places")->check(at_least(0))->capture_default_str()->needs(passkey);
  command->add_option("--limit", options->limit, "Items of each task at most, its first ones; 0 = all")
      ->check(at_least(0))
      ->capture_default_str()
      ->needs(tasks);
  command->add_flag("--log-samples", options->log_samples, "With --json: also what each item of a task, or each prompt, got");
  command->add_option("--text-key", options->text_key, "Key of the text in JSONL and Parquet rows")->capture_default_str();
  command->add_option("--format", options->format, "auto (by the name's ending), text, jsonl or parquet")->capture_default_str();
  command->add_option("--bad-rows", options->bad_rows, "Malformed rows and invalid UTF-8: skip, replace or fail")->capture_default_str();
  CLI::Option* context_length =
      command->add_option("--context-length", options->perplexity.context_length,
                          "Targets a window; of tasks: tokens seen at most, and the default is the model's positions");
  context_length->check(at_least(1))->capture_default_str();
  passkey->excludes(context_length);
  command->add_option("--stride", options->perplexity.stride, "Targets from window to window; 0 = the context length")
      ->check(at_least(0))
      ->capture_default_str();
  command->add_option("--batch-size", options->perplexity.batch_size, "Windows at a time; of tasks and prompts: 512 tokens each")
      ->check(at_least(1))
      ->check(at_most(kMaxBatchSize))
      ->capture_default_str();
  command->add_flag("--carry-state", options->perplexity.carry_state, "Carry the state from window to window inside a document");
  CLI::Option* by_position =
      command->add_flag("--by-position", options->by_position, "Also by ranges of positions, on the first row of each long document")
          ->excludes(context_length)
          ->excludes("--stride")
          ->excludes("--carry-state");
  command
      ->add_option("--positions", options->positions, "With --by-position: the last one of each range; the last of all is the row's length")
      ->delimiter(',')
      ->capture_default_str()
      ->needs(by_position);
  command
      ->add_option("--vocabulary", options->vocabulary, "Rows that the distributions run over: model = all, tokenizer = those with a token")
      ->check(CLI::IsMember(config::names_of<config::LossVocabulary>()))
      ->capture_default_str();
  command->add_flag("--stream", options->stream, "Join the documents of a file, cut into whole windows, drop the remainder");
  command->add_option("--max-tokens", options->max_tokens, "With --stream: targets at most (32k, 1M); 0 = all")->capture_default_str();
  command->add_option("--document-end", options->document_end, "With --stream: none, eos or a token put after each document")
      ->capture_default_str();
  command
      ->add_option("--max-document-size", options->max_document_size,
                   "Bytes: a longer text is refused (--stream: encoded in parts); encoding takes up to 150 times its size")
      ->capture_default_str();
  command->add_flag("--normalize-newlines", options->normalize_newlines, "Make one of every run of newlines");
  command->add_flag("--strip", options->strip, "Strip white space around each document");
  command->add_option("--unigram-from", options->unigram_from, "Training shards: also report the perplexity of their token frequencies");
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")->check(device_name())->capture_default_str();
  command->add_option("--precision", options->precision, "auto, fp32, bf16 or fp16")->check(precision_name())->capture_default_str();
  command->add_option("--json", options->json_path, "Write the figures to this file (- = standard output, instead of the table)")
      ->check(output_file());
  for (const char* of_windows : {"--context-length", "--stride", "--carry-state", "--by-position", "--stream", "--max-tokens",
                                 "--document-end", "--vocabulary", "--unigram-from"})
    repetition->excludes(command->get_option(of_windows));
  passkey->excludes(command->get_option("--vocabulary"));  // what has no token is never written
  for (const char* of_texts :
       {"--repetition", "--text-key", "--format", "--bad-rows", "--stride", "--carry-state", "--by-position", "--stream", "--max-tokens",
        "--document-end", "--max-document-size", "--normalize-newlines", "--strip", "--unigram-from"})
    command->get_option(of_texts)->needs(text);
  command->callback([options, command] {
    if (options->texts.empty() && options->tasks.empty() && options->passkey.empty())
      throw ConfigError("eval: what is to be measured? Give --text FILE, --tasks NAME or --passkey LENGTH");
    if (options->log_samples && !options->texts.empty() && options->repetition == 0)
      throw ConfigError("--log-samples: with --tasks, --passkey or --repetition: texts are not made of items");
    options->has_context_length = command->count("--context-length") > 0;
    compute_commands().run_eval(*options);
  });
}

}  // namespace distil_xlstm::cli
