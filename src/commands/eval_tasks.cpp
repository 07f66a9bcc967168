// distil-xlstm eval --tasks: scores of one model, or of two side by side, on multiple-choice tasks, LAMBADA and rolling perplexity.
#include "commands/eval_tasks.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/printable.h"
#include "base/standard_streams.h"
#include "cli/options/eval.h"
#include "commands/json_output.h"
#include "commands/left_out_rows.h"
#include "eval/permuted_options.h"
#include "eval/task_scores.h"
#include "load/model.h"
#include "ops/device.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::EvalOptions;

constexpr int64_t kLengthWithoutPositions = 2048;  // where no model has a bound, as in lm-evaluation-harness
constexpr int64_t kTokensOfWindow = 512;           // what --batch-size counts

struct TaskData {
  eval::Task task;
  std::vector<fs::path> files;
  std::vector<eval::TaskItem> items;
  std::vector<eval::TaskItem> permuted;  // of --permute-options
};

// Everything that can be wrong with tasks and data shows before a model is loaded.
std::vector<TaskData> read_tasks(const Options& options) {
  std::vector<TaskData> all;
  for (eval::Task& task : eval::load_tasks(options.tasks)) {
    const fs::path beside = task.folder.empty() ? fs::path(".") : task.folder;
    auto files = task.find_data(options.tasks_data.empty() ? beside : fs::path(options.tasks_data));
    auto items = eval::read_items(task, files, options.limit);
    auto permuted = options.permute_options ? eval::permuted_items(task, items) : std::vector<eval::TaskItem>{};
    all.push_back({std::move(task), std::move(files), std::move(items), std::move(permuted)});
  }
  return all;
}

void check_paths(const Options& options, const std::vector<TaskData>& tasks) {
  std::vector<fs::path> inputs = {options.model, options.teacher};
  for (const auto& [task, files, items, permuted] : tasks) inputs.insert(inputs.end(), files.begin(), files.end());
  for (const auto& name : options.tasks) {
    if (fs::path(name).extension() == ".toml") inputs.emplace_back(name);
  }
  check_json_output(options.json_path, inputs, "tasks");
  if (options.log_samples && options.json_path.empty()) throw ConfigError("--log-samples: where to? Give --json FILE");
}

// A model with what scoring needs of it.
class ScoredModel {
 public:
  // `other`: whose tokenizer serves where the model has none.
  ScoredModel(const std::string& name, const Options& options, const ScoredModel* other)
      : loaded_(load::load_model(name, options.device, options.precision)),
        tokenizer_(other != nullptr && !loaded_.tokenizer ? other->tokenizer_ : loaded_.require_tokenizer()) {
    scoring_.batch_tokens = options.perplexity.batch_size * kTokensOfWindow;
    scoring_.left_out_rows = choose_left_out_rows(loaded_, tokenizer_, name, options.vocabulary);
    scoring_.model_name = name;
  }

  ScoredModel(const ScoredModel&) = delete;  // tokenizer_ may lie inside
  ScoredModel& operator=(const ScoredModel&) = delete;
  ~ScoredModel() = default;

  [[nodiscard]] const load::LoadedModel& loaded() const { return loaded_; }
  void set_max_length(int64_t max_length) { scoring_.max_length = max_length; }

  std::vector<eval::ItemOutcome> outcomes(const eval::Task& task, const std::vector<eval::TaskItem>& items, ProgressLine& progress) const {
    const auto encoded = eval::encode_items(task, items, tokenizer_, loaded_.model->vocab_size(), scoring_.max_length);
    warn_of_cut_requests(encoded, task.name);
    const auto show = [&](size_t done) {
      if (progress.due())
        progress.update(fmt::format("{}: {}: {} of {} requests", task.name, scoring_.model_name, done, encoded.requests.size()));
    };
    return eval::gather_outcomes(task, encoded, eval::log_likelihoods(*loaded_.model, encoded.requests, scoring_, show));
  }

 private:
  void warn_of_cut_requests(const eval::EncodedItems& encoded, const std::string& task) const {
    const auto is_cut = [&](const eval::Request& request) {
      return static_cast<int64_t>(request.context.size() + request.continuation.size()) > scoring_.max_length + 1;
    };
    if (const auto count = std::ranges::count_if(encoded.requests, is_cut); count > 0) {
      spdlog::warn("{}: {}: {} of {} requests are longer than {} tokens (--context-length): their contexts lose the first ones", task,
                   scoring_.model_name, count, encoded.requests.size(), scoring_.max_length);
    }
  }

  load::LoadedModel loaded_;
  const Tokenizer& tokenizer_;
  eval::LoglikelihoodOptions scoring_;
};

// The same for both models, so that they are asked the same.
int64_t choose_max_length(const Options& options, const std::vector<const ScoredModel*>& models) {
  std::optional<int64_t> length;
  for (const ScoredModel* model : models) {
    if (options.has_context_length) load::warn_beyond_positions(model->loaded(), options.perplexity.context_length, "--context-length");
    const auto positions = load::num_positions(model->loaded());
    if (positions) length = std::min(length.value_or(*positions), *positions);
  }
  return options.has_context_length ? options.perplexity.context_length : length.value_or(kLengthWithoutPositions);
}

json settings_json(const Options& options, const ScoredModel& model, int64_t max_length) {
  const at::Device device = model.loaded().model->device();
  json settings = {{"model", options.model}, {"description", model.loaded().model->description()}};
  if (!options.teacher.empty()) settings["teacher"] = options.teacher;
  settings.update({{"context_length", max_length},
                   {"limit", options.limit},
                   {"permute_options", options.permute_options},
                   {"batch_size", options.perplexity.batch_size},
                   {"vocabulary", options.vocabulary},
                   {"precision", ops::precision_name(ops::parse_precision(options.precision, device))},
                   {"device", device.str()}});
  return settings;
}

constexpr const char* kLine = "{:<18} {:<16} {:>7} {:>9} {:>8}";
constexpr const char* kTeacherPart = " {:>9} {:>8} {:>8} {:>12} {:>10} {:>8}";

std::string number(const json& values, const std::string& key) {
  const auto found = values.find(key);
  if (found == values.end() || !found->is_number()) return "-";
  const auto value = found->get<double>();
  return std::abs(value) < 1e4 ? fmt::format("{:.4f}", value) : fmt::format("{:.3g}", value);
}

void end_line() {
  fmt::print("\n");
  check_output();  // the next task may take hours
}

void print_heading(bool has_teacher) {
  fmt::print(kLine, "task", "metric", "items", "model", "stderr");
  if (has_teacher) fmt::print(kTeacherPart, "teacher", "stderr", "kept", "above chance", "difference", "stderr");
  end_line();
}

// How often each letter was chosen with --permute-options.
void print_letters(const json& result) {
  if (!result.contains("letters")) return;
  for (const auto& [who, shares] : result["letters"].items()) {
    fmt::print("{:<18} letters of {:<7}", "", who);
    for (const auto& [letter, share] : shares.items()) fmt::print(" {} {:.3f}", letter, share.get<double>());
    end_line();
  }
}

void print_task(const std::string& name, const json& result) {
  bool is_first = true;
  for (const auto& [metric, value] : result["model"].items()) {
    if (metric.ends_with("_stderr")) continue;
    const std::string stderr_key = metric + "_stderr";
    fmt::print(kLine, is_first ? printable(name) : "", metric, is_first ? std::to_string(result["num_items"].get<int64_t>()) : "",
               number(result["model"], metric), number(result["model"], stderr_key));
    if (result.contains("teacher")) {
      const json& comparison = result["comparison"][metric];
      fmt::print(kTeacherPart, number(result["teacher"], metric), number(result["teacher"], stderr_key),
                 number(comparison, comparison.contains("ratio") ? "ratio" : "kept"), number(comparison, "kept_above_chance"),
                 number(comparison, "difference"), number(comparison, "difference_stderr"));
    }
    end_line();
    is_first = false;
  }
  print_letters(result);
}

void print_average(const json& average) {
  if (average.is_null()) return;
  const auto num_tasks = average["num_tasks"].get<int64_t>();
  fmt::print(kLine, "average", "primary", fmt::format("{} task{}", num_tasks, num_tasks == 1 ? "" : "s"), number(average, "model"),
             number(average, "model_stderr"));
  if (average.contains("teacher")) {
    fmt::print(kTeacherPart, number(average, "teacher"), number(average, "teacher_stderr"), number(average, "kept"),
               number(average, "kept_above_chance"), number(average, "difference"), number(average, "difference_stderr"));
  }
  end_line();
}

}  // namespace

void run_eval_tasks(const Options& options) {
  const std::vector<TaskData> tasks = read_tasks(options);
  check_paths(options, tasks);
  ScoredModel model(options.model, options, nullptr);
  std::optional<ScoredModel> teacher;
  if (!options.teacher.empty()) teacher.emplace(options.teacher, options, &model);
  std::vector<const ScoredModel*> models = {&model};
  if (teacher) models.push_back(&*teacher);
  const int64_t max_length = choose_max_length(options, models);
  model.set_max_length(max_length);
  if (teacher) teacher->set_max_length(max_length);

  const bool prints_table = options.json_path != "-";
  json results = settings_json(options, model, max_length);
  results["tasks"] = json::object();
  if (prints_table) print_heading(teacher.has_value());
  for (const TaskData& data : tasks) {
    ProgressLine progress;
    const double begin = monotonic_seconds();
    const auto of_model = model.outcomes(data.task, data.items, progress);
    const auto of_teacher = teacher ? teacher->outcomes(data.task, data.items, progress) : std::vector<eval::ItemOutcome>{};
    std::optional<eval::PermutedScores> permuted, teacher_permuted;
    if (options.permute_options) {
      permuted = eval::permuted_scores(data.permuted, model.outcomes(data.task, data.permuted, progress));
      if (teacher) teacher_permuted = eval::permuted_scores(data.permuted, teacher->outcomes(data.task, data.permuted, progress));
    }
    progress.finish(
        fmt::format("{}: {:.1f} items/s", data.task.name, static_cast<double>(data.items.size()) / (monotonic_seconds() - begin)));
    json& result = results["tasks"][data.task.name];
    result = eval::task_json(data.task, data.items, of_model, of_teacher, options.log_samples);
    if (permuted) eval::add_permuted(result, *permuted, teacher_permuted ? &*teacher_permuted : nullptr);
    for (const auto& file : data.files) result["data"].push_back(file.string());
    if (prints_table) print_task(data.task.name, result);
  }
  results["average"] = eval::average_json(results["tasks"]);
  if (!prints_table) {
    std::cout << results.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
    return;
  }
  print_average(results["average"]);
  if (!options.json_path.empty()) write_json(options.json_path, results);
}

}  // namespace distil_xlstm::commands
