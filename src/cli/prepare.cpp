// distil-xlstm prepare: text -> token shards.
#include <fmt/format.h>

#include <memory>

#include "base/signals.h"
#include "base/text.h"
#include "cli/commands.h"
#include "data/prepare.h"

namespace distil_xlstm::cli {

namespace {

struct PrepareArguments {
  data::PrepareOptions options;
  std::string output;
  std::string format = "auto";
  std::string rows = "auto";
  std::string bad_rows = "skip";
  std::string max_tokens = "0";
  std::string shard_bytes = "512M";
};

void print_report(const data::PrepareOptions& options, const data::PrepareReport& report) {
  const auto count = [](auto value) { return format_count(static_cast<double>(value)); };
  const auto& counts = report.counts;
  fmt::print("{}: {}\n", options.output.string(), report.was_complete ? "already complete" : "complete");
  fmt::print("  documents          {}  ({} of text)\n", counts.documents, format_bytes(static_cast<double>(counts.text_bytes)));
  fmt::print("  train tokens       {}\n  validation tokens  {}\n", report.train_tokens, report.validation_tokens);
  if (report.targets.conversations > 0) {
    fmt::print("  target tokens      {}  (that count for the loss)\n", report.targets.target_tokens);
  }
  fmt::print("  shards             {}\n", report.shards.size());
  const std::pair<const char*, uint64_t> faults[] = {
      {"empty documents left out", counts.empty_documents},
      {"malformed rows left out", counts.malformed_rows},
      {options.reader.bad_rows == data::BadRowPolicy::replace ? "texts with invalid UTF-8 repaired" : "texts with invalid UTF-8 left out",
       counts.invalid_utf8},
      {"conversations the template refused", report.refused_conversations},
      {"conversations without an answer that counts", report.targets.without_answer},
      {"answers that do not count, as they are not found", report.targets.missing_answers},
      {"long documents encoded in parts", counts.cut_documents}};
  for (const auto& [name, number] : faults) {
    if (number > 0) fmt::print("  {}: {}\n", name, number);
  }
  if (report.reached_max_tokens) fmt::print("  stopped at max_tokens = {}\n", options.max_tokens);
  if (report.was_complete || report.seconds <= 0) return;
  fmt::print("  {} in {}: {:.2f} MB/s, {} tokens/s\n", report.was_resumed ? "the rest" : "all", format_duration(report.seconds),
             static_cast<double>(report.session_bytes) / report.seconds / 1e6,
             count(static_cast<double>(report.session_tokens) / report.seconds));
}

void run(PrepareArguments& arguments) {
  auto& options = arguments.options;
  options.output = arguments.output;
  options.reader.format = data::parse_file_format(arguments.format);
  options.reader.rows = data::parse_row_kind(arguments.rows);
  options.reader.bad_rows = data::parse_bad_row_policy(arguments.bad_rows);
  options.max_tokens = parse_count(arguments.max_tokens, "--max-tokens");
  const int64_t shard_bytes = parse_count(arguments.shard_bytes, "--shard-size");
  if (shard_bytes < 1) throw ConfigError("--shard-size {}: it must be at least 1", arguments.shard_bytes);
  options.shard_bytes = static_cast<uint64_t>(shard_bytes);
  const SignalGuard guard;
  print_report(options, data::prepare(options));
}

}  // namespace

void add_prepare_command(CLI::App& app) {
  auto arguments = std::make_shared<PrepareArguments>();
  auto& options = arguments->options;
  auto* command = app.add_subcommand("prepare", "Turn text into packed token shards");
  command->footer(
      "Example: distil-xlstm prepare data/fineweb/*.parquet --model Qwen/Qwen2.5-1.5B --context-length 512 --output data/tokens\n"
      "An interrupted run goes on when the same command is given again.");
  command->add_option("INPUT", options.reader.inputs, "Files, directories or globs: .txt .md .jsonl .ndjson .json (+ .gz .zst), .parquet")
      ->required();
  command->add_option("--model,-m", options.model, "Whose tokenizer: a model, or a tokenizer.json")->required();
  command->add_option("--output,-o", arguments->output, "Directory for the shards")->required();
  command->add_option("--context-length", options.context_length, "Targets in a row")->capture_default_str();
  command->add_option("--document-end", options.document_end, "What ends each document: none, eos, or a token such as <|endoftext|>")
      ->capture_default_str();
  command->add_option("--validation-fraction", options.validation_fraction, "Share of the documents kept for validation")
      ->capture_default_str();
  command->add_option("--max-tokens", arguments->max_tokens, "Stop at so many tokens, such as 512M; 0: all text")->capture_default_str();
  command->add_flag("--normalize-newlines", options.reader.normalize_newlines, "Make every run of newlines one");
  command->add_flag("--strip", options.reader.strip, "Remove white space from both ends of each document");

  const char* rows = "Rows";
  command->add_option("--format", arguments->format, "auto (by the name's ending), text, jsonl or parquet")
      ->capture_default_str()
      ->group(rows);
  command->add_option("--rows", arguments->rows, "auto, text, or chat (the loss counts in the answers only)")
      ->capture_default_str()
      ->group(rows);
  command->add_option("--text-key", options.reader.text_key, "Key or column of the text")->capture_default_str()->group(rows);
  command
      ->add_option("--messages-key", options.reader.messages_key,
                   "Key or column of a conversation: [{role, content, ...}]; conversations is known as well")
      ->capture_default_str()
      ->group(rows);
  command->add_option("--prompt-key", options.reader.prompt_key, "Key or column of a prompt; prompt, instruction and question are known")
      ->group(rows);
  command->add_option("--answer-key", options.reader.answer_key, "Key or column of its answer; response, output and answer are known")
      ->group(rows);
  command->add_option("--bad-rows", arguments->bad_rows, "Malformed rows and invalid UTF-8: skip, replace or fail")
      ->capture_default_str()
      ->group(rows);

  const char* work = "Work";
  command->add_option("--threads", options.num_threads, "Threads that encode; 0: all cores. The result is the same")
      ->capture_default_str()
      ->group(work);
  command->add_option("--shard-size", arguments->shard_bytes, "Bytes of ids in a shard, at most")->capture_default_str()->group(work);
  command->add_flag("--overwrite", options.overwrite, "Replace shards that the output already holds")->group(work);
  command->callback([arguments] { run(*arguments); });
}

}  // namespace distil_xlstm::cli
