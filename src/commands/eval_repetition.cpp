// distil-xlstm eval --repetition: how much of what a model writes greedily it has written before.
#include "commands/eval_repetition.h"

#include <algorithm>
#include <iostream>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/standard_streams.h"
#include "cli/options/eval.h"
#include "commands/eval_texts.h"
#include "commands/greedy_model.h"
#include "commands/json_output.h"
#include "eval/means.h"
#include "eval/repetition.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::EvalOptions;

// The beginnings of the first documents that have so many tokens.
std::vector<std::string> read_prompts(const std::vector<fs::path>& paths, const Options& options, const GreedyModel& model) {
  std::vector<std::string> prompts;
  const auto length = static_cast<size_t>(options.prompt_tokens);
  int64_t num_short = 0;
  const auto is_enough = [&] { return static_cast<int64_t>(prompts.size()) == options.repetition; };
  for (const fs::path& path : paths) {
    if (is_enough()) break;
    read_documents(path, options, model.tokenizer(), model.loaded().model->vocab_size(), [&](const eval::EvalDocument& document) {
      if (auto beginning = eval::document_beginning(model.tokenizer(), document.tokens, length)) {
        prompts.push_back(std::move(*beginning));
      } else {
        ++num_short;
      }
      return !is_enough();
    });
  }
  if (prompts.empty()) throw DataError("--repetition: no document has {} tokens: give longer ones, or lower --prompt-tokens", length);
  if (!is_enough()) {
    spdlog::warn("--repetition {}: only {} documents have {} tokens (--prompt-tokens), {} are shorter", options.repetition, prompts.size(),
                 length, num_short);
  }
  return prompts;
}

struct Written {
  std::vector<double> repeated, num_tokens;
  std::vector<std::string> texts;

  [[nodiscard]] json to_json() const {
    json object = json::object();
    eval::add_mean(object, "repeated_4grams", repeated);
    object["mean_tokens"] = eval::mean_of(num_tokens).mean;
    return object;
  }
};

Written write(const GreedyModel& model, const std::vector<std::string>& prompts, const Options& options, ProgressLine& progress) {
  const auto ids = model.encode(prompts, options.new_tokens, "--prompt-tokens and --new-tokens");
  const auto result = model.write(ids, options.new_tokens, [&](size_t done) {
    if (progress.due()) progress.update(fmt::format("{}: {} of {} prompts", model.name(), done, prompts.size()));
  });
  Written written;
  for (const auto& continuation : result.continuations) {
    written.repeated.push_back(eval::repeated_ngrams(continuation));
    written.num_tokens.push_back(static_cast<double>(continuation.size()));
    if (options.log_samples) written.texts.push_back(model.tokenizer().decode(continuation));
  }
  return written;
}

json samples_json(const std::vector<std::string>& prompts, const Written& model, const std::optional<Written>& teacher) {
  const auto of = [](const Written& written, size_t i) {
    return json{{"text", written.texts[i]}, {"repeated_4grams", written.repeated[i]}};
  };
  json samples = json::array();
  for (size_t i = 0; i < prompts.size(); ++i) {
    json sample = {{"prompt", prompts[i]}, {"model", of(model, i)}};
    if (teacher) sample["teacher"] = of(*teacher, i);
    samples.push_back(std::move(sample));
  }
  return samples;
}

void print_table(const json& results) {
  constexpr const char* kLine = "{:<10} {:>8} {:>12} {:>16} {:>8}\n";
  fmt::print(kLine, "", "prompts", "mean tokens", "repeated 4-grams", "stderr");
  for (const char* who : {"model", "teacher"}) {
    if (!results["repetition"].contains(who)) continue;
    const json& one = results["repetition"][who];
    fmt::print(kLine, who, results["num_prompts"].get<int64_t>(), fmt::format("{:.1f}", one["mean_tokens"].get<double>()),
               fmt::format("{:.4f}", one["repeated_4grams"].get<double>()),
               fmt::format("{:.4f}", one["repeated_4grams_stderr"].get<double>()));
  }
  if (results["repetition"].contains("comparison")) {
    const json& comparison = results["repetition"]["comparison"];
    fmt::print(kLine, "difference", "", "", fmt::format("{:.4f}", comparison["difference"].get<double>()),
               fmt::format("{:.4f}", comparison["difference_stderr"].get<double>()));
  }
  check_output();
}

}  // namespace

void run_eval_repetition(const Options& options) {
  const auto paths = data::TextReader(reader_options(options.texts, options)).files();
  std::vector<fs::path> inputs = {options.model, options.teacher};
  inputs.insert(inputs.end(), paths.begin(), paths.end());
  check_json_output(options.json_path, inputs, "repetition");
  if (options.log_samples && options.json_path.empty()) throw ConfigError("--log-samples: where to? Give --json FILE");
  const GreedyModel model(options.model, options, nullptr);
  std::optional<GreedyModel> teacher;
  if (!options.teacher.empty()) teacher.emplace(options.teacher, options, &model);
  const auto prompts = read_prompts(paths, options, model);

  json results = greedy_settings(options, model);
  results.update({{"num_prompts", prompts.size()}, {"prompt_tokens", options.prompt_tokens}, {"new_tokens", options.new_tokens}});
  for (const fs::path& path : paths) results["files"].push_back(path.string());
  ProgressLine progress;
  const double begin = monotonic_seconds();
  const Written of_model = write(model, prompts, options, progress);
  std::optional<Written> of_teacher;
  if (teacher) of_teacher = write(*teacher, prompts, options, progress);
  progress.finish(fmt::format("{:.1f} prompts/s", static_cast<double>(prompts.size()) / (monotonic_seconds() - begin)));
  json& repetition = results["repetition"];
  repetition["model"] = of_model.to_json();
  if (of_teacher) {
    repetition["teacher"] = of_teacher->to_json();
    repetition["comparison"] = eval::paired_json(of_model.repeated, of_teacher->repeated);
    repetition["comparison"].erase("kept");  // less is better
  }
  if (options.log_samples) results["samples"] = samples_json(prompts, of_model, of_teacher);
  if (options.json_path == "-") {
    std::cout << results.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
    return;
  }
  print_table(results);
  if (!options.json_path.empty()) write_json(options.json_path, results);
}

}  // namespace distil_xlstm::commands
