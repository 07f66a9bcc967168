// distil-xlstm eval --passkey: whether a model finds a number in a long text, by the text's length, and what that costs.
#include "commands/eval_passkey.h"

#include <algorithm>
#include <iostream>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/standard_streams.h"
#include "base/text.h"
#include "cli/options/eval.h"
#include "commands/greedy_model.h"
#include "commands/json_output.h"
#include "eval/means.h"
#include "eval/passkey.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::EvalOptions;

constexpr int64_t kMaxLength = 10'000'000;  // tokens

std::vector<int64_t> lengths_of(const Options& options) {
  std::vector<int64_t> lengths;
  for (const auto& text : options.passkey) {
    const int64_t length = parse_count(text, "--passkey");
    if (length < 1) throw ConfigError("--passkey {}: must be at least 1 token", text);
    if (length > kMaxLength) throw ConfigError("--passkey {}: must be at most {} tokens", text, kMaxLength);
    if (std::ranges::find(lengths, length) != lengths.end()) throw ConfigError("--passkey: {} is named twice", text);
    lengths.push_back(length);
  }
  return lengths;
}

// What one model made of the prompts of a length.
struct Answers {
  std::vector<double> is_right;  // 1 or 0
  std::vector<std::string> texts;
  std::vector<double> prompt_tokens;
  json speed;

  [[nodiscard]] json to_json() const {
    json object = json::object();
    eval::add_mean(object, "accuracy", is_right);
    object["prompt_tokens"] = {
        {"mean", eval::mean_of(prompt_tokens).mean}, {"least", std::ranges::min(prompt_tokens)}, {"most", std::ranges::max(prompt_tokens)}};
    object.update(speed);
    return object;
  }
};

Answers answer(const GreedyModel& model, const std::vector<eval::PasskeyPrompt>& prompts, const eval::PasskeyTexts& texts, int64_t length,
               ProgressLine& progress) {
  std::vector<std::string> questions;
  std::vector<int64_t> num_tokens;
  for (const auto& prompt : prompts) {
    questions.push_back(prompt.text);
    num_tokens.push_back(eval::answer_tokens(texts, prompt.key, model.tokenizer()));
  }
  const int64_t most = std::ranges::max(num_tokens);
  const auto ids = model.encode(questions, most, fmt::format("--passkey {}", length));
  auto written = model.write(ids, most, [&](size_t done) {
    if (progress.due()) progress.update(fmt::format("{}: {}: {} of {} prompts", length, model.name(), done, prompts.size()));
  });
  Answers answers;
  for (size_t i = 0; i < prompts.size(); ++i) {
    auto& continuation = written.continuations[i];
    continuation.resize(std::min(continuation.size(), static_cast<size_t>(num_tokens[i])));
    answers.texts.push_back(model.tokenizer().decode(continuation, /*skip_special_tokens=*/true));
    answers.is_right.push_back(eval::is_key(answers.texts.back(), prompts[i].key) ? 1.0 : 0.0);
    answers.prompt_tokens.push_back(static_cast<double>(ids[i].size()));
  }
  answers.speed = speed_json(written);
  return answers;
}

json samples_json(const std::vector<eval::PasskeyPrompt>& prompts, const Answers& model, const std::optional<Answers>& teacher) {
  json samples = json::array();
  for (size_t i = 0; i < prompts.size(); ++i) {
    json sample = {{"key", prompts[i].key}, {"depth", prompts[i].depth}, {"model", model.texts[i]}};
    if (teacher) sample["teacher"] = teacher->texts[i];
    samples.push_back(std::move(sample));
  }
  return samples;
}

constexpr const char* kLine = "{:>7} {:>8} {:<8} {:>8} {:>8} {:>12} {:>11} {:>11}";
constexpr const char* kTeacherPart = " {:>8} {:>10} {:>8}";

void end_line() {
  fmt::print("\n");
  check_output();  // the next length may take hours
}

void print_heading(bool has_teacher) {
  fmt::print(kLine, "length", "tokens", "", "right", "stderr", "prefill/s", "decode/s", "state a row");
  if (has_teacher) fmt::print(kTeacherPart, "kept", "difference", "stderr");
  end_line();
}

std::string number(const json& value, int digits) {
  return value.is_number() ? fmt::format("{:.{}f}", value.get<double>(), digits) : "-";
}

void print_model(const json& result, const char* who, bool is_first) {
  const json& model = result[who];
  fmt::print(kLine, is_first ? std::to_string(result["length"].get<int64_t>()) : "", number(model["prompt_tokens"]["mean"], 1), who,
             number(model["accuracy"], 4), number(model["accuracy_stderr"], 4), number(model["prefill_tokens_per_second"], 1),
             number(model["decode_tokens_per_second"], 1), format_bytes(model["state_bytes_per_row"].get<double>()));
  if (is_first && result.contains("comparison")) {
    const json& comparison = result["comparison"];
    fmt::print(kTeacherPart, number(comparison["kept"], 4), number(comparison["difference"], 4),
               number(comparison["difference_stderr"], 4));
  }
  end_line();
}

}  // namespace

void run_eval_passkey(const Options& options) {
  const auto lengths = lengths_of(options);
  check_json_output(options.json_path, {options.model, options.teacher, options.passkey_filler}, "passkey");
  if (options.log_samples && options.json_path.empty()) throw ConfigError("--log-samples: where to? Give --json FILE");
  const eval::PasskeyTexts texts = eval::load_passkey_texts(options.passkey_filler);
  const GreedyModel model(options.model, options, nullptr);
  std::vector<std::vector<eval::PasskeyPrompt>> prompts_of;  // a length that is too short shows before the work
  for (const int64_t length : lengths)
    prompts_of.push_back(eval::make_passkey_prompts(texts, model.tokenizer(), length, options.passkey_prompts, options.seed));
  std::optional<GreedyModel> teacher;
  if (!options.teacher.empty()) teacher.emplace(options.teacher, options, &model);

  const bool prints_table = options.json_path != "-";
  json results = greedy_settings(options, model);
  results.update({{"num_prompts", options.passkey_prompts}, {"seed", options.seed}});
  if (!options.passkey_filler.empty()) results["passkey_filler"] = options.passkey_filler;
  results["passkey"] = json::array();
  if (prints_table) print_heading(teacher.has_value());
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int64_t length = lengths[i];
    const auto& prompts = prompts_of[i];
    ProgressLine progress;
    const double begin = monotonic_seconds();
    const Answers of_model = answer(model, prompts, texts, length, progress);
    std::optional<Answers> of_teacher;
    if (teacher) of_teacher = answer(*teacher, prompts, texts, length, progress);
    progress.finish(fmt::format("{}: {:.1f} prompts/s", length, static_cast<double>(prompts.size()) / (monotonic_seconds() - begin)));
    json result = {{"length", length}, {"model", of_model.to_json()}};
    if (of_teacher) {
      result["teacher"] = of_teacher->to_json();
      result["comparison"] = eval::paired_json(of_model.is_right, of_teacher->is_right);
    }
    if (prints_table) {
      print_model(result, "model", true);
      if (of_teacher) print_model(result, "teacher", false);
    }
    if (options.log_samples) result["samples"] = samples_json(prompts, of_model, of_teacher);
    results["passkey"].push_back(std::move(result));
  }
  if (!prints_table) {
    std::cout << results.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
  } else if (!options.json_path.empty()) {
    write_json(options.json_path, results);
  }
}

}  // namespace distil_xlstm::commands
