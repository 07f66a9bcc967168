// distil-xlstm eval: perplexity of one model, or of two side by side (tasks: eval_tasks.cpp).
#include <cmath>
#include <functional>
#include <iostream>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/printable.h"
#include "base/signals.h"
#include "base/standard_streams.h"
#include "base/text.h"
#include "cli/options/eval.h"
#include "commands/compute.h"
#include "commands/eval_tasks.h"
#include "commands/json_output.h"
#include "commands/left_out_rows.h"
#include "data/text_reader.h"
#include "eval/perplexity.h"
#include "eval/unigram.h"
#include "load/model.h"
#include "ops/device.h"
#include "tokenizer/document_borders.h"
#include "tokenizer/vocabulary.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::EvalOptions;

data::ReaderOptions reader_options(const std::vector<std::string>& inputs, const Options& options) {
  data::ReaderOptions reader_options;
  reader_options.inputs = inputs;
  reader_options.format = data::parse_file_format(options.format);
  reader_options.rows = data::RowKind::text;
  reader_options.text_key = options.text_key;
  reader_options.normalize_newlines = options.normalize_newlines;
  reader_options.strip = options.strip;
  reader_options.bad_rows = data::parse_bad_row_policy(options.bad_rows);
  reader_options.max_piece_bytes = static_cast<uint64_t>(parse_count(options.max_document_size, "--max-document-size"));
  reader_options.cuts_long_texts = options.stream;  // as `prepare` cuts them; documents are measured whole
  return reader_options;
}

// Hands the documents of a file to `use` as ids, one at a time, until it says that it has enough.
void read_documents(const fs::path& path, const Options& options, const Tokenizer& tokenizer, int64_t num_rows,
                    const std::function<bool(const eval::EvalDocument&)>& use) {
  const auto borders = document_borders(tokenizer, document_end_id(options.document_end, tokenizer));
  uint64_t num_repeated = 0;
  data::TextReader reader(reader_options({path.string()}, options));
  data::Document text;
  for (bool wants_more = true; wants_more && reader.next(text);) {
    eval::EvalDocument document;
    document.tokens = tokenizer.encode(text.text);
    if (text.begins) {
      if (begins_with(document.tokens, borders.begin)) ++num_repeated;
      document.tokens.insert(document.tokens.begin(), borders.begin.begin(), borders.begin.end());
    }
    if (text.ends) document.tokens.insert(document.tokens.end(), borders.end.begin(), borders.end.end());
    check_rows(document.tokens, tokenizer, num_rows, path.string());
    document.size_bytes = static_cast<int64_t>(text.text.size());
    wants_more = use(document);
  }
  warn_of_repeated_prefix(path.string(), borders.begin, num_repeated);
  const auto& counts = reader.counts();
  if (counts.cut_documents > 0) {
    spdlog::warn("{}: texts longer than --max-document-size {}: {}: encoded in parts, so that a token at a cut may be another one",
                 path.string(), options.max_document_size, counts.cut_documents);
  }
  if (counts.malformed_rows + counts.invalid_utf8 > 0) {
    spdlog::warn("{}: malformed rows left out: {}, texts with invalid UTF-8 {}: {}", path.string(), counts.malformed_rows,
                 options.bad_rows == "replace" ? "repaired" : "left out", counts.invalid_utf8);
  }
}

// All documents as one, cut to whole windows (and to max_tokens targets): what the PyTorch references measure.
class Stream {
 public:
  Stream(eval::PerplexityScorer& scorer, const Options& options, int64_t max_tokens)
      : scorer_(scorer),
        context_length_(options.perplexity.context_length),
        max_tokens_(max_tokens),
        whole_(options.perplexity.carry_state) {}

  // False when there is enough.
  bool add(std::span<const int32_t> tokens) {
    num_tokens_ += static_cast<int64_t>(tokens.size());
    waiting_.insert(waiting_.end(), tokens.begin(), tokens.end());
    if (!whole_) give();
    return max_tokens_ == 0 || num_tokens_ <= max_tokens_;
  }

  // Tokens up to the last target.
  [[nodiscard]] int64_t num_scored() const { return num_targets() + 1; }

  void finish(const fs::path& path) {
    give();
    scorer_.end_document();
    if (scorer_.target_tokens() > 0) return;
    throw DataError("{}: --stream: {} tokens do not fill one window of --context-length {}", path.string(), num_tokens_, context_length_);
  }

 private:
  // A multiple of context_length.
  [[nodiscard]] int64_t num_targets() const {
    int64_t targets = std::max<int64_t>(num_tokens_ - 1, 0);
    if (max_tokens_ > 0) targets = std::min(targets, max_tokens_);
    return targets - targets % context_length_;
  }

  // Hands on what fills windows: the first token and the targets.
  void give() {
    const int64_t targets = num_targets();
    if (targets == 0 || targets + 1 <= given_) return;
    const auto count = static_cast<size_t>(targets + 1 - given_);
    scorer_.append(std::span(waiting_).first(count));
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<ptrdiff_t>(count));
    given_ = targets + 1;
  }

  eval::PerplexityScorer& scorer_;
  int64_t context_length_, max_tokens_;
  bool whole_;                    // in one part, as a state that is carried needs it
  std::vector<int32_t> waiting_;  // read and not given to the scorer yet
  int64_t num_tokens_ = 0, given_ = 0;
};

// Columns of the table: heading, width, key of the JSON and digits after the point.
struct Column {
  const char* heading;
  int width;
  const char* key;
  int digits;
};

std::vector<Column> table_columns(bool has_unigram) {
  std::vector<Column> columns = {{"targets", 10, "target_tokens", 0},
                                 {"nats/token", 10, "nats_per_token", 4},
                                 {"ppl", 9, "perplexity", 3},
                                 {"bits/byte", 9, "bits_per_byte", 4},
                                 {"teacher", 10, "teacher_perplexity", 3},
                                 {"ratio", 8, "perplexity_ratio", 4},
                                 {"top-1", 8, "top1_agreement", 4},
                                 {"KL", 8, "mean_kl", 4}};
  if (has_unigram) columns.push_back({"unigram", 10, "unigram_perplexity", 3});
  return columns;
}

void print_heading(const std::vector<Column>& columns) {
  fmt::print("{:<44}", "text");
  for (const auto& column : columns) fmt::print(" {:>{}}", column.heading, column.width);
  fmt::print("\n");
}

void print_row(const std::vector<Column>& columns, const std::string& name, const json& row) {
  fmt::print("{:<44}", name.size() > 44 ? "…" + name.substr(name.size() - 42) : name);
  for (const auto& column : columns) {
    const bool has_value = row.contains(column.key) && row[column.key].is_number();
    fmt::print(" {:>{}}", has_value ? fmt::format("{:.{}f}", row[column.key].get<double>(), column.digits) : "-", column.width);
  }
  fmt::print("\n");
  check_output();  // the next file may take hours
}

void add_unigram(json& row, double nats, int64_t target_tokens) {
  row["unigram_nats_per_token"] = nats / static_cast<double>(target_tokens);
  row["unigram_perplexity"] = std::exp(nats / static_cast<double>(target_tokens));
}

// What the figures depend on.
json settings_json(const Options& options, const load::LoadedModel& student, int64_t max_tokens) {
  const auto& perplexity = options.perplexity;
  const at::Device device = student.model->device();
  json settings = {{"model", options.model}, {"description", student.model->description()}};
  if (!options.teacher.empty()) settings["teacher"] = options.teacher;
  settings.update({{"context_length", perplexity.context_length},
                   {"stride", perplexity.stride == 0 ? perplexity.context_length : perplexity.stride},
                   {"batch_size", perplexity.batch_size},
                   {"stream", options.stream},
                   {"carry_state", perplexity.carry_state},
                   {"vocabulary", options.vocabulary},
                   {"max_tokens", max_tokens},
                   {"document_end", options.document_end},
                   {"normalize_newlines", options.normalize_newlines},
                   {"strip", options.strip},
                   {"text_key", options.text_key},
                   {"format", options.format},
                   {"bad_rows", options.bad_rows},
                   {"precision", ops::precision_name(ops::parse_precision(options.precision, device))},
                   {"device", device.str()}});
  if (!options.unigram_from.empty()) settings["unigram_from"] = options.unigram_from;
  return settings;
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

struct Models {
  const load::LoadedModel& model;
  const load::LoadedModel* teacher;

  // True when it warned.
  bool warn_of_length(int64_t num_tokens, std::string_view what) const {
    const bool of_model = load::warn_beyond_positions(model, num_tokens, what);
    return (teacher != nullptr && load::warn_beyond_positions(*teacher, num_tokens, what)) || of_model;
  }
};

eval::PerplexityResult score_file(const fs::path& path, const Options& options, const Tokenizer& tokenizer, const Models& models,
                                  int64_t max_tokens, const eval::Unigram* unigram, double& unigram_nats) {
  ProgressLine progress;
  eval::PerplexityScorer::Observers observers;
  if (unigram != nullptr) observers.targets = [&](std::span<const int32_t> targets) { unigram->add_nats(targets, unigram_nats); };
  observers.progress = [&](int64_t done) {
    if (progress.due()) progress.update(fmt::format("{}: {} tokens", path.filename().string(), format_count(static_cast<double>(done))));
  };
  nn::LanguageModel* teacher = models.teacher != nullptr ? models.teacher->model.get() : nullptr;
  eval::PerplexityScorer scorer(*models.model.model, teacher, options.perplexity, std::move(observers));
  const int64_t num_rows = models.model.model->vocab_size();
  bool has_warned = !options.perplexity.carry_state;  // before the work: the first time that a state is carried too far
  const auto check_length = [&](int64_t num_tokens) {
    if (!has_warned) has_warned = models.warn_of_length(num_tokens, fmt::format("--carry-state: {}", path.string()));
  };
  if (options.stream) {
    Stream stream(scorer, options, max_tokens);
    read_documents(path, options, tokenizer, num_rows, [&](const eval::EvalDocument& document) { return stream.add(document.tokens); });
    check_length(stream.num_scored());
    stream.finish(path);
  } else {
    read_documents(path, options, tokenizer, num_rows, [&](const eval::EvalDocument& document) {
      check_length(static_cast<int64_t>(document.tokens.size()));
      scorer.add(document);
      return true;
    });
  }
  if (scorer.target_tokens() == 0) throw DataError("{}: no document has two tokens: there is nothing to predict", path.string());
  const auto result = scorer.finish();
  progress.finish(fmt::format("{}: {:.0f} tokens/s", path.filename().string(), static_cast<double>(result.target_tokens) / result.seconds));
  return result;
}

// All that can be said before anything is loaded. Returns --max-tokens.
int64_t checked_max_tokens(const Options& options) {
  const int64_t max_tokens = parse_count(options.max_tokens, "--max-tokens");
  if (max_tokens > 0 && !options.stream) throw ConfigError("--max-tokens: only with --stream; documents are always evaluated whole");
  if (max_tokens > 0 && max_tokens < options.perplexity.context_length) {
    throw ConfigError("--max-tokens {}: does not fill one window of --context-length {}", options.max_tokens,
                      options.perplexity.context_length);
  }
  if (options.document_end != "none" && !options.stream)
    throw ConfigError("--document-end: only with --stream; documents get what the tokenizer puts around a text");
  if (parse_count(options.max_document_size, "--max-document-size") < 1024)
    throw ConfigError("--max-document-size {}: must be at least 1024 bytes", options.max_document_size);
  return max_tokens;
}

void check_output(const Options& options, const std::vector<fs::path>& texts) {
  std::vector<fs::path> inputs = {options.model, options.teacher};
  inputs.insert(inputs.end(), options.unigram_from.begin(), options.unigram_from.end());
  inputs.insert(inputs.end(), texts.begin(), texts.end());
  check_json_output(options.json_path, inputs, "carry_state");
}

std::optional<load::LoadedModel> load_teacher(const Options& options, const Tokenizer& tokenizer) {
  if (options.teacher.empty()) return std::nullopt;
  auto teacher = load::load_model(options.teacher, options.device, options.precision);
  if (teacher.tokenizer && teacher.tokenizer->fingerprint() != tokenizer.fingerprint()) {
    spdlog::warn("{} and {} have different tokenizer files ({} and {}): ids are taken from the first", options.model, options.teacher,
                 tokenizer.fingerprint(), teacher.tokenizer->fingerprint());
  }
  return teacher;
}

}  // namespace

void run_eval(const cli::EvalOptions& given) {
  Options options = given;
  const SignalGuard guard;
  if (!options.tasks.empty()) return run_eval_tasks(options);
  const int64_t max_tokens = checked_max_tokens(options);
  const auto paths = data::TextReader(reader_options(options.texts, options)).files();
  check_output(options, paths);
  std::optional<eval::Unigram> unigram;
  if (!options.unigram_from.empty()) unigram.emplace(options.unigram_from);
  const load::LoadedModel student = load::load_model(options.model, options.device, options.precision);
  const Tokenizer& tokenizer = student.require_tokenizer();
  const std::optional<load::LoadedModel> teacher = load_teacher(options, tokenizer);
  const Models models{student, teacher ? &*teacher : nullptr};
  models.warn_of_length(options.perplexity.context_length, "--context-length");
  options.perplexity.left_out_rows = choose_left_out_rows(student, tokenizer, options.model, options.vocabulary);
  options.perplexity.model_name = options.model;
  options.perplexity.teacher_name = options.teacher;

  json results = settings_json(options, student, max_tokens);
  results["files"] = json::object();
  eval::PerplexityResult total;
  double total_unigram_nats = 0;
  const auto columns = table_columns(unigram.has_value());
  if (options.json_path != "-") print_heading(columns);
  for (const fs::path& path : paths) {
    double unigram_nats = 0;
    const auto result = score_file(path, options, tokenizer, models, max_tokens, unigram ? &*unigram : nullptr, unigram_nats);
    json& row = results["files"][path.string()];
    row = result.to_json(teacher.has_value());
    if (unigram) {
      total_unigram_nats += unigram_nats;
      add_unigram(row, unigram_nats, result.target_tokens);
    }
    if (options.json_path != "-") print_row(columns, printable(path.string()), row);
    add(total, result);
  }
  if (paths.size() > 1) {
    results["total"] = total.to_json(teacher.has_value());
    if (unigram) add_unigram(results["total"], total_unigram_nats, total.target_tokens);
    if (options.json_path != "-") print_row(columns, "all", results["total"]);
  }
  if (options.json_path == "-") {
    std::cout << results.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
  } else if (!options.json_path.empty()) {
    write_json(options.json_path, results);
  }
}

}  // namespace distil_xlstm::commands
