#include "eval/task.h"

#include <algorithm>
#include <array>
#include <set>
#include <span>

#include "base/error.h"
#include "base/text.h"
#include "config/toml.h"
#include "data/byte_stream.h"

namespace distil_xlstm::eval {
namespace {

struct NamedOutputType {
  std::string_view name;
  OutputType type;
  std::vector<std::string> metrics;
  std::vector<std::string> templates;  // that a form may have, beside `group`
};

const std::vector<NamedOutputType>& output_types() {
  static const std::vector<NamedOutputType> types = {
      {"multiple_choice",
       OutputType::multiple_choice,
       {"acc", "acc_norm", "acc_bytes"},
       {"context", "choices", "contexts", "continuation", "answer"}},
      {"loglikelihood", OutputType::loglikelihood, {"acc", "perplexity"}, {"context", "target"}},
      {"loglikelihood_rolling",
       OutputType::loglikelihood_rolling,
       {"word_perplexity", "byte_perplexity", "bits_per_byte", "token_perplexity"},
       {"target", "counted"}},
  };
  return types;
}

std::vector<std::string> texts_of(const json& tree, const std::string& key, const std::string& where) {
  const auto found = tree.find(key);
  if (found == tree.end()) return {};
  if (!found->is_array() || !std::ranges::all_of(*found, [](const json& item) { return item.is_string(); }))
    throw ConfigError("{}: {} = {}: must be a list of texts", where, key, found->dump());
  return found->get<std::vector<std::string>>();
}

std::string text_of(const json& tree, const std::string& key, const std::string& where) {
  const auto found = tree.find(key);
  if (found == tree.end()) return "";
  if (!found->is_string()) throw ConfigError("{}: {} = {}: must be a text", where, key, found->dump());
  return found->get<std::string>();
}

void check_keys(const json& tree, const std::vector<std::string>& known, const std::string& where) {
  for (const auto& item : tree.items()) {
    if (std::ranges::find(known, item.key()) == known.end())
      throw ConfigError("{}: unknown key '{}'{}: known are {}", where, item.key(), did_you_mean(item.key(), known), join(known, ", "));
  }
}

// Reads the templates of one form and gathers the keys that they read.
class FormReader {
 public:
  FormReader(const json& tree, std::string where) : tree_(tree), where_(std::move(where)) {}

  std::optional<RowTemplate> text(const std::string& key) {
    if (!tree_.contains(key)) return std::nullopt;
    return compile(text_of(tree_, key, where_), key);
  }

  std::optional<TextListTemplate> list(const std::string& key) {
    if (!tree_.contains(key)) return std::nullopt;
    TextListTemplate result;
    result.writes_list = tree_[key].is_string();
    const auto sources = result.writes_list ? std::vector{text_of(tree_, key, where_)} : texts_of(tree_, key, where_);
    for (const auto& source : sources) result.templates.push_back(compile(source, key));
    return result;
  }

  [[nodiscard]] std::vector<std::string> keys() const { return {keys_.begin(), keys_.end()}; }

 private:
  RowTemplate compile(const std::string& source, const std::string& key) {
    try {
      RowTemplate result(source, key);
      keys_.insert(result.keys().begin(), result.keys().end());
      return result;
    } catch (const DataError& error) {
      throw ConfigError("{}: {}", where_, error.what());
    }
  }

  const json& tree_;
  std::string where_;
  std::set<std::string> keys_;
};

void require_templates(const TaskForm& form, OutputType type, const std::string& where) {
  if (type != OutputType::multiple_choice) {
    if (!form.target) throw ConfigError("{}: 'target' is missing", where);
    if (type == OutputType::loglikelihood && !form.context) throw ConfigError("{}: 'context' is missing", where);
    return;
  }
  if (!form.answer) throw ConfigError("{}: 'answer' is missing", where);
  const bool has_choices = form.context && form.choices && !form.contexts && !form.continuation;
  const bool has_contexts = form.contexts && form.continuation && !form.context && !form.choices;
  if (!has_choices && !has_contexts)
    throw ConfigError("{}: needs 'context' and 'choices', or 'contexts' (one for each choice) and 'continuation'", where);
}

TaskForm read_form(const json& tree, const NamedOutputType& type, const std::string& where) {
  if (!tree.is_object()) throw ConfigError("{}: must be a table: [[form]]", where);
  std::vector<std::string> known = type.templates;
  known.emplace_back("group");
  check_keys(tree, known, where);
  FormReader reader(tree, where);
  TaskForm form;
  form.context = reader.text("context");
  form.choices = reader.list("choices");
  form.contexts = reader.list("contexts");
  form.continuation = reader.text("continuation");
  form.answer = reader.text("answer");
  form.target = reader.text("target");
  form.counted = reader.text("counted");
  form.group = reader.text("group");
  form.keys = reader.keys();
  require_templates(form, type.type, where);
  return form;
}

const NamedOutputType& output_type_of(const json& tree, const std::string& where) {
  const std::string name = text_of(tree, "output_type", where);
  std::vector<std::string> names;
  for (const auto& type : output_types()) {
    if (type.name == name) return type;
    names.emplace_back(type.name);
  }
  throw ConfigError("{}: output_type = \"{}\": must be one of {}", where, name, join(names, ", "));
}

bool holds_rows(const fs::path& path, bool takes_text) {
  const std::string ending = to_lower(data::without_compression(path).extension().string());
  constexpr std::array kRows = {".jsonl", ".ndjson", ".json", ".parquet"};
  constexpr std::array kText = {".txt", ".raw", ".tokens"};
  const auto is_one_of = [&](const auto& endings) { return std::ranges::find(endings, ending) != endings.end(); };
  return is_one_of(kRows) || (takes_text && is_one_of(kText));
}

// The task files of the program, by name.
std::vector<fs::path> task_files() {
  const fs::path folder = share_directory() / "tasks";
  if (!fs::is_directory(folder)) throw IoError("{}: no such folder, and the program's tasks lie there: copy share/ whole", folder.string());
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".toml") files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

Task read_task(const fs::path& file) {
  return parse_task(read_file(file), file.stem().string(), file.string());
}

Task find_task(const std::string& name) {
  std::vector<std::string> known;
  for (const fs::path& file : task_files()) {
    known.push_back(file.stem().string());
    if (known.back() == name) return read_task(file);
  }
  for (const fs::path& file : task_files()) {
    const auto aliases = texts_of(config::parse_toml_tree(read_file(file), file.string()), "aliases", file.string());
    if (std::ranges::find(aliases, name) != aliases.end()) return read_task(file);
  }
  throw ConfigError("--tasks: no task is named '{}'{}: known are {}; a file of your own ends in .toml", name, did_you_mean(name, known),
                    join(known, ", "));
}

}  // namespace

std::vector<std::string> TextListTemplate::render(const json& row, const std::string& place) const {
  std::vector<std::string> texts;
  for (const auto& one : templates) texts.push_back(one.render(row, place));
  if (!writes_list) return texts;
  const json list = json::parse(texts.front(), nullptr, /*allow_exceptions=*/false);
  if (!list.is_array() || !std::ranges::all_of(list, [](const json& item) { return item.is_string(); }))
    throw DataError("{}: what should be a list of texts is {}: end the template in '| tojson'", place, texts.front());
  return list.get<std::vector<std::string>>();
}

bool is_accuracy(std::string_view metric) {
  return metric == "acc" || metric == "acc_norm" || metric == "acc_bytes";
}

std::vector<fs::path> Task::find_data(const fs::path& data_directory) const {
  for (const auto& pattern : data) {
    std::vector<fs::path> files;
    try {
      files = expand_paths({data_directory == "." ? pattern : (data_directory / pattern).string()});
    } catch (const IoError&) {
      continue;  // nothing there
    }
    std::erase_if(files, [&](const fs::path& file) { return !holds_rows(file, !pages_as.empty()); });
    if (!files.empty()) return files;
  }
  const std::string origin = source.empty() ? "" : fmt::format(" The data: {}.", source);
  throw DataError(
      "task {}: no data in {}: looked for {} (.jsonl, .json or .parquet): put them there, or name their folder with --tasks-data.{}", name,
      data_directory.string(), join(data, ", "), origin);
}

Task parse_task(const std::string& text, const std::string& name, const std::string& where) {
  const json tree = config::parse_toml_tree(text, where);
  check_keys(tree, {"output_type", "metrics", "source", "data", "aliases", "target_delimiter", "pages_as", "form"}, where);
  const NamedOutputType& type = output_type_of(tree, where);
  Task task;
  task.name = name;
  task.output_type = type.type;
  task.metrics = texts_of(tree, "metrics", where);
  if (task.metrics.empty())
    throw ConfigError("{}: 'metrics' is missing: of {} it is some of {}", where, type.name, join(type.metrics, ", "));
  for (const auto& metric : task.metrics) {
    if (std::ranges::find(type.metrics, metric) == type.metrics.end())
      throw ConfigError("{}: metrics: '{}' is none of {}: known are {}", where, metric, type.name, join(type.metrics, ", "));
  }
  task.source = text_of(tree, "source", where);
  task.data = texts_of(tree, "data", where);
  if (task.data.empty()) throw ConfigError("{}: 'data' is missing: a list of globs", where);
  if (tree.contains("target_delimiter")) task.target_delimiter = text_of(tree, "target_delimiter", where);
  task.pages_as = text_of(tree, "pages_as", where);
  const auto forms = tree.find("form");
  if (forms == tree.end() || !forms->is_array() || forms->empty()) throw ConfigError("{}: a table [[form]] is missing", where);
  for (size_t i = 0; i < forms->size(); ++i) {
    const std::string place = fmt::format("{}: form {}", where, i + 1);
    task.forms.push_back(read_form((*forms)[i], type, place));
    const bool has_normalized = std::ranges::any_of(task.metrics, [](const auto& metric) { return metric.starts_with("acc_"); });
    if (task.forms.back().contexts && has_normalized)
      throw ConfigError("{}: metrics: choices that are contexts have no length to divide by: only acc is known", place);
  }
  return task;
}

std::vector<Task> load_tasks(const std::vector<std::string>& names) {
  std::vector<Task> tasks;
  for (const auto& name : names) {
    const fs::path path = name;
    if (path.extension() == ".toml") {
      tasks.push_back(read_task(path));
      tasks.back().folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
    } else {
      tasks.push_back(find_task(name));
    }
    const auto is_same = [&](const Task& task) { return task.name == tasks.back().name; };
    if (std::ranges::count_if(tasks, is_same) > 1) throw ConfigError("--tasks: '{}' is named twice", tasks.back().name);
  }
  return tasks;
}

}  // namespace distil_xlstm::eval
