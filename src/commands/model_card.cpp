#include "commands/model_card.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "config/settings.h"
#include "io/builtin.h"
#include "io/run_files.h"

namespace distil_xlstm::commands {
namespace {

constexpr const char* kMark = "<!-- Written by distil-xlstm export, which replaces this page. To keep your changes, delete this line. -->";

// What a checkpoint and its run say of themselves; empty objects where they say nothing.
struct Source {
  json run = json::object(), trainer = json::object();

  [[nodiscard]] json setting(const std::string& key) const {
    const json::json_pointer at("/settings/" + replaced(key));
    return run.contains(at) ? run.at(at) : json();
  }

 private:
  static std::string replaced(std::string key) {
    std::ranges::replace(key, '.', '/');
    return key;
  }
};

Source read_source(const fs::path& checkpoint) {
  Source source;
  if (!fs::exists(checkpoint / "trainer.json")) return source;
  try {
    source.trainer = io::read_trainer_json(checkpoint, {});
    const fs::path run = fs::absolute(checkpoint).lexically_normal().parent_path().parent_path() / "run.json";
    if (fs::exists(run)) source.run = read_json(run);
  } catch (const DataError&) {  // NOLINT(bugprone-empty-catch): weights are used without these files, and so a card is made
  }
  return source;
}

// A path means nothing elsewhere, and may tell more than is wanted.
std::string public_name(const std::string& name) {
  if (io::parse_repository_name(name) && !fs::exists(name)) return name;
  const fs::path path = fs::path(name).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

std::optional<fs::path> teacher_directory(const std::string& name) {
  if (fs::is_directory(name)) return name;
  if (auto directory = io::builtin_model_directory(name)) return directory;
  if (const auto repository = io::parse_repository_name(name)) return io::fetched_model_directory(*repository);
  return std::nullopt;
}

// "license: apache-2.0" and its like from the metadata of the teacher's own card.
std::vector<std::string> licence_lines(const std::string& teacher) {
  const auto directory = teacher_directory(teacher);
  if (!directory || !fs::is_regular_file(*directory / "README.md")) return {};
  const std::string card = replace_invalid_utf8(read_file(*directory / "README.md"));
  std::vector<std::string> lines;
  for (size_t begin = 0, end = 0, number = 0; begin < card.size(); begin = end + 1, ++number) {
    end = std::min(card.find('\n', begin), card.size());
    std::string line = card.substr(begin, end - begin);
    if (line.ends_with('\r')) line.pop_back();
    if ((number == 0) != (line == "---")) break;                                                       // no metadata, or their end
    const bool is_link = line.starts_with("license_link: ") && line.find("://") != std::string::npos;  // not to a file of the teacher's
    if (line.starts_with("license: ") || line.starts_with("license_name: ") || is_link) lines.push_back(line);
  }
  return lines;
}

std::string metadata(const Source& source, const student::StudentShape& shape, const student::PythonForm& form) {
  std::string text = "---\n";
  if (!form.library.empty()) text += fmt::format("library_name: {}\n", form.library);
  text += "pipeline_tag: text-generation\n";
  const json teacher = source.setting("teacher.model");
  if (teacher.is_string()) {
    const std::string name = public_name(teacher.get<std::string>());
    if (io::parse_repository_name(name)) text += fmt::format("base_model: {}\n", name.substr(0, name.find('@')));
    for (const std::string& line : licence_lines(teacher.get<std::string>())) text += line + "\n";
  }
  return text + fmt::format("tags:\n- xlstm\n- recurrent\n- distillation\n- distil-xlstm\n- {}\n---\n", shape.kind());
}

std::string introduction(const Source& source, const student::StudentShape& shape) {
  const json teacher = source.setting("teacher.model");
  const std::string of = teacher.is_string() ? fmt::format(" of {}", public_name(teacher.get<std::string>())) : "";
  return fmt::format(
      "# Student{}\n\nA {} language model, distilled from a transformer by distil-xlstm: {}. {}\n\n{} its teacher's: mind the teacher's "
      "licence.\n",
      of, shape.has_constant_state() ? "recurrent" : "hybrid", shape.description(),
      shape.has_constant_state() ? "It writes with a state of constant size, however long the text."
                                 : "The state that it writes with grows with the text, in the layers that keep attention.",
      shape.keeps_teacher_layers() ? "Embedding and head are, and the layers began as," : "Embedding and head are");
}

std::string figures(const Source& source) {
  const json& trainer = source.trainer;
  if (!trainer.contains("step")) return "";
  const auto number = [](const json& object, const char* key) { return get_or<double>(object, key, 0.0); };
  std::string text = fmt::format("\n## Figures\n\n| | |\n| --- | --- |\n| steps | {} |\n| tokens | {} |\n", number(trainer, "step"),
                                 format_count(number(trainer, "tokens")));
  for (const auto& [result, at] : {std::pair{"best_validation", "best_step"}, std::pair{"last_validation", "validated_step"}}) {
    if (!trainer.contains(result) || !trainer.at(result).is_object() || number(trainer, at) != number(trainer, "step")) continue;
    const json& found = trainer.at(result);
    text += fmt::format("| validation perplexity | {:.4g} |\n", number(found, "perplexity"));
    if (found.contains("teacher_perplexity")) {
      text += fmt::format("| its teacher's | {:.4g} |\n| ratio | {:.3f} |\n", number(found, "teacher_perplexity"),
                          number(found, "perplexity_ratio"));
      text += fmt::format("| same likeliest token | {:.1f} % |\n| mean KL | {:.3f} nats |\n", 100 * number(found, "agreement"),
                          number(found, "mean_kl"));
    }
    return text + fmt::format("| validation text | {} tokens |\n", number(found, "target_tokens"));
  }
  return text;
}

// Settings that are not the program's defaults, as a run file has them.
std::string recipe(const Source& source) {
  const config::RunConfig defaults;
  std::string lines;
  for (const config::Setting& setting : config::all_settings()) {
    json value = source.setting(setting.key);
    if (value.is_null() || value == setting.get(defaults) || setting.key == "output") continue;
    const bool is_path = setting.key == "teacher.model" || setting.key == "data.train" || setting.key == "data.validation" ||
                         setting.key == "student.init_from";
    if (is_path && value.is_string()) value = public_name(value.get<std::string>());
    if (value.is_array()) {
      for (json& entry : value) {
        if (entry.is_object() && entry.contains("path")) entry["path"] = public_name(entry["path"].get<std::string>());
      }
    }
    lines += fmt::format("{} = {}\n", setting.key, config::toml_value(value));
  }
  return lines.empty() ? "" : fmt::format("\n## Recipe\n\nOther settings are the program's defaults.\n\n```toml\n{}```\n", lines);
}

}  // namespace

bool is_own_card(const fs::path& path) {
  return fs::is_regular_file(path) && read_file(path).find(kMark) != std::string::npos;
}

std::string model_card(const io::ModelFiles& student, const student::StudentShape& shape, const student::PythonForm& form) {
  if (const fs::path card = student.path / "README.md"; is_own_card(card)) return read_file(card);
  const Source source = read_source(student.path);
  std::string text = metadata(source, shape, form) + kMark + "\n" + introduction(source, shape);
  if (!form.example.empty()) text += fmt::format("\n## Use\n\n```python\n{}```\n", form.example);
  if (!form.limits.empty()) text += "\n" + form.limits;
  text += "\nIn the program itself: `distil-xlstm generate --model DIRECTORY --prompt \"Once upon a time\"`.\n";
  return text + figures(source) + recipe(source);
}

}  // namespace distil_xlstm::commands
