// Evaluation tasks as files: what a row of a data set asks a model, and how its answers count. docs/eval.md describes the file. The terms
// are those of lm-evaluation-harness, whose results these are.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "tokenizer/row_template.h"

namespace distil_xlstm::eval {

enum class OutputType {
  multiple_choice,        // the most likely of several continuations
  loglikelihood,          // one continuation: how likely, and whether greedy decoding would write it
  loglikelihood_rolling,  // a text, every token of it
};

// Texts made of a row, either a template each or one template that writes a JSON list.
struct TextListTemplate {
  std::vector<RowTemplate> templates;
  bool writes_list = false;

  [[nodiscard]] std::vector<std::string> render(const json& row, const std::string& place) const;
};

// One shape of rows. Which templates there are depends on the output type.
struct TaskForm {
  std::vector<std::string> keys;             // that its templates read
  std::optional<RowTemplate> context;        // multiple_choice, loglikelihood
  std::optional<TextListTemplate> choices;   // multiple_choice: the continuations
  std::optional<TextListTemplate> contexts;  // or a context for each choice ...
  std::optional<RowTemplate> continuation;   // ... and one continuation behind any of them
  std::optional<RowTemplate> answer;         // multiple_choice: index of the right choice, or its text
  std::optional<RowTemplate> target;         // loglikelihood: the continuation; rolling: the text
  std::optional<RowTemplate> counted;        // rolling: the text whose words and bytes count, if not the target
  std::optional<RowTemplate> group;          // "" or the sub-task that the row belongs to
};

struct Task {
  std::string name;
  OutputType output_type = OutputType::multiple_choice;
  std::vector<std::string> metrics;  // the first is the primary one
  std::string source;                // where its data come from, for messages
  std::vector<std::string> data;     // globs below the folder with data; the first that finds files counts
  std::string target_delimiter = " ";
  std::string pages_as;  // "": rows only; else the key of a page where the data are plain text, cut at headings of the first level
  std::vector<TaskForm> forms;
  fs::path folder;  // of a file that the user named; empty for tasks of the program

  [[nodiscard]] const std::string& primary_metric() const { return metrics.front(); }
  // Throws DataError that says what was looked for and where the data can be had.
  [[nodiscard]] std::vector<fs::path> find_data(const fs::path& data_directory) const;
};

// Whether a metric is a share of items that are right: those have a chance level and an average over tasks.
bool is_accuracy(std::string_view metric);

// From a file's text; `where` names it. Throws ConfigError that names the key.
Task parse_task(const std::string& text, const std::string& name, const std::string& where);

// Names of tasks of the program (share/tasks) or paths of task files (*.toml). Throws ConfigError that lists the names known.
std::vector<Task> load_tasks(const std::vector<std::string>& names);

}  // namespace distil_xlstm::eval
