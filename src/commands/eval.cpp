// distil-xlstm eval: perplexity of one model, or of two side by side (other measures: eval_*.cpp).
#include <cmath>
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
#include "commands/eval_passkey.h"
#include "commands/eval_repetition.h"
#include "commands/eval_tasks.h"
#include "commands/eval_texts.h"
#include "commands/json_output.h"
#include "commands/left_out_rows.h"
#include "data/text_reader.h"
#include "eval/perplexity.h"
#include "eval/unigram.h"
#include "load/model.h"
#include "ops/device.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::EvalOptions;

const char* length_option(const Options& options) {
  return options.by_position ? "--positions" : "--context-length";
}

// All documents as one, cut to whole windows (and to max_tokens targets): what the PyTorch references measure.
class Stream {
 public:
  Stream(eval::PerplexityScorer& scorer, const Options& options, int64_t max_tokens)
      : scorer_(scorer),
        context_length_(options.perplexity.context_length),
        max_tokens_(max_tokens),
        length_option_(length_option(options)),
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
    throw DataError("{}: --stream: {} tokens do not fill one window of {} {}", path.string(), num_tokens_, length_option_, context_length_);
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
  const char* length_option_;
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

// A file's figures, with those of its ranges of positions.
json result_json(const eval::PerplexityResult& result, const eval::PerplexityOptions& options, bool has_teacher) {
  json row = result.to_json(has_teacher);
  for (size_t i = 0; i < result.by_position.size(); ++i) {
    const auto& sums = result.by_position[i];
    const int64_t first = i == 0 ? 1 : options.position_ends[i - 1] + 1, last = options.position_ends[i];
    json range = {{"first", first}, {"last", last}, {"num_rows", sums.target_tokens / (last - first + 1)}};
    range.update(sums.sums_json(has_teacher));
    row["by_position"].push_back(std::move(range));
  }
  return row;
}

void print_rows(const std::vector<Column>& columns, const std::string& name, const json& row) {
  print_row(columns, name, row);
  if (!row.contains("by_position")) return;
  for (const auto& range : row["by_position"]) {
    print_row(columns, fmt::format("  positions {}-{}", range["first"].get<int64_t>(), range["last"].get<int64_t>()), range);
  }
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
                   {"by_position", options.by_position},
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

struct Models {
  const load::LoadedModel& model;
  const load::LoadedModel* teacher;

  // True when it warned.
  bool warn_of_length(int64_t num_tokens, std::string_view what) const {
    const bool of_model = load::warn_beyond_positions(model, num_tokens, what);
    return (teacher != nullptr && load::warn_beyond_positions(*teacher, num_tokens, what)) || of_model;
  }
};

// The first row of each document that has a whole one.
void score_rows(const fs::path& path, const Options& options, const Tokenizer& tokenizer, int64_t num_rows,
                eval::PerplexityScorer& scorer) {
  const auto row_tokens = static_cast<size_t>(options.perplexity.context_length) + 1;  // with the last target
  int64_t num_documents = 0, num_short = 0;
  read_documents(path, options, tokenizer, num_rows, [&](const eval::EvalDocument& document) {
    ++num_documents;
    if (document.tokens.size() < row_tokens) {
      ++num_short;
    } else {
      scorer.add({.tokens = {document.tokens.begin(), document.tokens.begin() + static_cast<ptrdiff_t>(row_tokens)}});
    }
    return true;
  });
  if (num_short == num_documents) {
    throw DataError(
        "{}: --by-position: none of {} documents has {} tokens: give longer ones, join them with --stream, or lower --positions",
        path.string(), num_documents, row_tokens);
  }
  if (num_short > 0) {
    spdlog::info("{}: --by-position: {} of {} documents have fewer than {} tokens and are left out", path.string(), num_short,
                 num_documents, row_tokens);
  }
}

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
  } else if (options.by_position) {
    score_rows(path, options, tokenizer, num_rows, scorer);
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

// With --by-position windows are rows as long as the last range says.
void set_rows(Options& options) {
  auto& ends = options.perplexity.position_ends;
  for (size_t i = 0; i < options.positions.size(); ++i) {
    ends.push_back(parse_count(options.positions[i], "--positions"));
    if (ends.back() < 1 || (i > 0 && ends[i] <= ends[i - 1]))
      throw ConfigError("--positions {}: the last positions of ranges ascend, and the first is at least 1", join(options.positions, ","));
  }
  options.perplexity.context_length = ends.back();
}

// All that can be said before anything is loaded. Returns --max-tokens.
int64_t checked_max_tokens(const Options& options) {
  const int64_t max_tokens = parse_count(options.max_tokens, "--max-tokens");
  if (max_tokens > 0 && !options.stream) throw ConfigError("--max-tokens: only with --stream; documents are always evaluated whole");
  if (max_tokens > 0 && max_tokens < options.perplexity.context_length) {
    throw ConfigError("--max-tokens {}: does not fill one window of {} {}", options.max_tokens, length_option(options),
                      options.perplexity.context_length);
  }
  if (options.document_end != "none" && !options.stream)
    throw ConfigError("--document-end: only with --stream; documents get what the tokenizer puts around a text");
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
  if (!options.passkey.empty()) return run_eval_passkey(options);
  if (options.repetition > 0) return run_eval_repetition(options);
  if (options.by_position) set_rows(options);
  const int64_t max_tokens = checked_max_tokens(options);
  const auto paths = data::TextReader(reader_options(options.texts, options)).files();
  check_output(options, paths);
  std::optional<eval::Unigram> unigram;
  if (!options.unigram_from.empty()) unigram.emplace(options.unigram_from);
  const load::LoadedModel student = load::load_model(options.model, options.device, options.precision);
  const Tokenizer& tokenizer = student.require_tokenizer();
  const std::optional<load::LoadedModel> teacher = load_teacher(options, tokenizer);
  const Models models{student, teacher ? &*teacher : nullptr};
  models.warn_of_length(options.perplexity.context_length, length_option(options));
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
    row = result_json(result, options.perplexity, teacher.has_value());
    if (unigram) {
      total_unigram_nats += unigram_nats;
      add_unigram(row, unigram_nats, result.target_tokens);
    }
    if (options.json_path != "-") print_rows(columns, printable(path.string()), row);
    total.add(result);
  }
  if (paths.size() > 1) {
    results["total"] = result_json(total, options.perplexity, teacher.has_value());
    if (unigram) add_unigram(results["total"], total_unigram_nats, total.target_tokens);
    if (options.json_path != "-") print_rows(columns, "all", results["total"]);
  }
  if (options.json_path == "-") {
    std::cout << results.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
  } else if (!options.json_path.empty()) {
    write_json(options.json_path, results);
  }
}

}  // namespace distil_xlstm::commands
