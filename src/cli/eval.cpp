// distil-xlstm eval: perplexity of one model, or of two side by side.
#include <cmath>
#include <iostream>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/signals.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/loaded_model.h"
#include "data/text_reader.h"
#include "eval/perplexity.h"
#include "eval/unigram.h"

namespace distil_xlstm::cli {
namespace {

struct Options {
  std::string model, teacher, json_path, text_key = "text", document_end = "none", device = "auto", precision = "auto", max_tokens = "0";
  std::vector<std::string> texts, unigram_from;
  eval::PerplexityOptions perplexity;
  bool stream = false, normalize_newlines = false, strip = false;
};

std::optional<int32_t> document_end_id(const std::string& name, const Tokenizer& tokenizer) {
  if (name == "none") return std::nullopt;
  const auto id = name == "eos" ? tokenizer.eos_id() : tokenizer.token_id(name);
  if (!id) throw ConfigError("--document-end {}: the tokenizer of {} has no such token", name, tokenizer.files().origin);
  return id;
}

std::vector<eval::EvalDocument> read_documents(const fs::path& path, const Options& options, const Tokenizer& tokenizer) {
  data::ReaderOptions reader_options;
  reader_options.inputs = {path.string()};
  reader_options.rows = data::RowKind::text;
  reader_options.text_key = options.text_key;
  reader_options.normalize_newlines = options.normalize_newlines;
  reader_options.strip = options.strip;
  reader_options.bad_rows = data::BadRowPolicy::fail;
  reader_options.max_piece_bytes = std::numeric_limits<uint64_t>::max();
  const auto end_id = options.stream ? document_end_id(options.document_end, tokenizer) : std::nullopt;
  std::vector<eval::EvalDocument> documents;
  data::TextReader reader(reader_options);
  data::Document text;
  while (reader.next(text)) {
    eval::EvalDocument document;
    document.tokens = tokenizer.encode(text.text);
    if (tokenizer.adds_bos() && tokenizer.bos_id()) document.tokens.insert(document.tokens.begin(), *tokenizer.bos_id());
    if (end_id) document.tokens.push_back(*end_id);
    document.size_bytes = static_cast<int64_t>(text.text.size());
    documents.push_back(std::move(document));
  }
  return documents;
}

// All documents as one, cut to whole windows (and to max_tokens targets): what the PyTorch references measure.
std::vector<eval::EvalDocument> join_stream(std::vector<eval::EvalDocument> documents, int64_t context_length, int64_t max_tokens) {
  eval::EvalDocument stream;
  for (auto& document : documents) stream.tokens.insert(stream.tokens.end(), document.tokens.begin(), document.tokens.end());
  auto targets = static_cast<int64_t>(stream.tokens.size()) - 1;
  if (max_tokens > 0) targets = std::min(targets, max_tokens);
  targets -= targets % context_length;
  if (targets <= 0) throw DataError("--stream: {} tokens are fewer than one window of {}", stream.tokens.size(), context_length);
  stream.tokens.resize(static_cast<size_t>(targets) + 1);
  return {std::move(stream)};
}

void print_heading() {
  fmt::print("{:<44} {:>10} {:>10} {:>9} {:>9} {:>10} {:>8} {:>8} {:>8}\n", "text", "targets", "nats/token", "ppl", "bits/byte", "teacher",
             "ratio", "top-1", "KL");
}

void print_row(const std::string& name, const json& row) {
  const auto number = [&](const char* key, int digits) {
    return row.contains(key) && row[key].is_number() ? fmt::format("{:.{}f}", row[key].get<double>(), digits) : std::string("-");
  };
  fmt::print("{:<44} {:>10} {:>10} {:>9} {:>9} {:>10} {:>8} {:>8} {:>8}\n", name.size() > 44 ? "…" + name.substr(name.size() - 42) : name,
             row["target_tokens"].get<int64_t>(), number("nats_per_token", 4), number("perplexity", 3), number("bits_per_byte", 4),
             number("teacher_perplexity", 3), number("perplexity_ratio", 4), number("top1_agreement", 4), number("mean_kl", 4));
}

// The sum of two results; `seconds` too.
void add(eval::PerplexityResult& total, const eval::PerplexityResult& part) {
  total.target_tokens += part.target_tokens;
  total.size_bytes += part.size_bytes;
  total.nats += part.nats;
  total.teacher_nats += part.teacher_nats;
  total.kl += part.kl;
  total.agreements += part.agreements;
  total.seconds += part.seconds;
}

void run(const Options& options) {
  const SignalGuard guard;
  const int64_t max_tokens = parse_count(options.max_tokens, "--max-tokens");
  if (max_tokens > 0 && !options.stream) throw ConfigError("--max-tokens: only with --stream; documents are always evaluated whole");
  if (options.document_end != "none" && !options.stream)
    throw ConfigError("--document-end: only with --stream; nothing is appended to documents");
  const LoadedModel student = load_model(options.model, options.device, options.precision);
  const Tokenizer& tokenizer = student.require_tokenizer();
  std::optional<LoadedModel> teacher;
  if (!options.teacher.empty()) {
    teacher = load_model(options.teacher, options.device, options.precision);
    if (teacher->tokenizer && teacher->tokenizer->fingerprint() != tokenizer.fingerprint()) {
      spdlog::warn("{} and {} have different tokenizer files ({} and {}): ids are taken from the first", options.model, options.teacher,
                   tokenizer.fingerprint(), teacher->tokenizer->fingerprint());
    }
  }
  nn::LanguageModel* second = teacher ? teacher->model.get() : nullptr;

  json results = {{"model", options.model}, {"description", student.model->description()}};
  if (teacher) results["teacher"] = options.teacher;
  results["context_length"] = options.perplexity.context_length;
  results["stride"] = options.perplexity.stride == 0 ? options.perplexity.context_length : options.perplexity.stride;
  results["stream"] = options.stream;
  results["carry_state"] = options.perplexity.carry_state;
  results["files"] = json::object();
  eval::PerplexityResult total;
  const auto paths = expand_paths(options.texts);
  std::optional<eval::Unigram> unigram;
  if (!options.unigram_from.empty()) unigram.emplace(options.unigram_from);
  bool has_heading = false;
  for (const fs::path& path : paths) {
    auto documents = read_documents(path, options, tokenizer);
    if (options.stream) documents = join_stream(std::move(documents), options.perplexity.context_length, max_tokens);
    ProgressLine progress;
    const auto result = eval::perplexity(*student.model, second, documents, options.perplexity, [&](int64_t done, int64_t all) {
      if (progress.due())
        progress.update(fmt::format("{}: {} of {} tokens", path.filename().string(), format_count(static_cast<double>(done)),
                                    format_count(static_cast<double>(all))));
    });
    progress.finish(
        fmt::format("{}: {:.0f} tokens/s", path.filename().string(), static_cast<double>(result.target_tokens) / result.seconds));
    results["files"][path.string()] = result.to_json(second != nullptr);
    if (unigram) {
      const double nats = unigram->nats(documents) / static_cast<double>(result.target_tokens);
      results["files"][path.string()]["unigram_nats_per_token"] = nats;
      results["files"][path.string()]["unigram_perplexity"] = std::exp(nats);
    }
    if (options.json_path != "-") {
      if (!std::exchange(has_heading, true)) print_heading();
      print_row(path.string(), results["files"][path.string()]);
    }
    add(total, result);
  }
  if (paths.size() > 1) {
    results["total"] = total.to_json(second != nullptr);
    if (options.json_path != "-") print_row("all", results["total"]);
  }
  if (options.json_path == "-") {
    std::cout << results.dump(2) << "\n";
  } else if (!options.json_path.empty()) {
    write_json(options.json_path, results);
  }
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("eval", "Measure perplexity, also beside a teacher's on the same tokens");
  command->add_option("--model,-m", options->model, "Run, checkpoint, Hugging Face directory, GGUF file or built-in name")->required();
  command->add_option("--teacher", options->teacher, "A second model: its perplexity, top-1 agreement and KL beside the first's");
  command->add_option("--text", options->texts, "Files, directories or globs: a .txt file is one document, a JSONL row is one")->required();
  command->add_option("--text-key", options->text_key, "Key of the text in JSONL and Parquet rows")->capture_default_str();
  command->add_option("--context-length", options->perplexity.context_length, "Targets a window")->capture_default_str();
  command->add_option("--stride", options->perplexity.stride, "Targets from window to window; 0 = the context length")
      ->capture_default_str();
  command->add_option("--batch-size", options->perplexity.batch_size, "Windows at a time")->capture_default_str();
  command->add_flag("--carry-state", options->perplexity.carry_state, "Carry the state from window to window inside a document");
  command->add_flag("--stream", options->stream, "Join the documents of a file, cut into whole windows, drop the remainder");
  command->add_option("--max-tokens", options->max_tokens, "With --stream: targets at most (32k, 1M); 0 = all")->capture_default_str();
  command->add_option("--document-end", options->document_end, "With --stream: none, eos or a token put after each document")
      ->capture_default_str();
  command->add_flag("--normalize-newlines", options->normalize_newlines, "Make one of every run of newlines");
  command->add_flag("--strip", options->strip, "Strip white space around each document");
  command->add_option("--unigram-from", options->unigram_from, "Training shards: also report the perplexity of their token frequencies");
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  command->add_option("--precision", options->precision, "auto, fp32, bf16 or fp16")->capture_default_str();
  command->add_option("--json", options->json_path, "Write the figures to this file (- = standard output, instead of the table)");
  command->callback([options] { run(*options); });
}

}  // namespace distil_xlstm::cli
