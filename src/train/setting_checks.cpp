#include "train/setting_checks.h"

#include <functional>
#include <set>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "distill/method.h"
#include "distill/schedule.h"
#include "student/registry.h"
#include "teacher/source.h"

namespace distil_xlstm::train {
namespace {

class Problems {
 public:
  void add(std::string problem) { lines_.push_back(std::move(problem)); }
  // Runs the check of a key, and keeps what it throws behind the place where the key was said.
  void check(const config::LoadedConfig& loaded, const std::string& key, const std::function<void()>& run) {
    try {
      run();
    } catch (const ConfigError& error) {
      const auto said = loaded.sources.find(key);
      add(said == loaded.sources.end() ? error.what() : fmt::format("{}: {}", said->second, error.what()));
    }
  }
  void raise() const {
    if (!lines_.empty()) throw ConfigError("{}", join(lines_, "\n"));
  }

 private:
  std::vector<std::string> lines_;
};

void add_unknown_names(const config::LoadedConfig& loaded, Problems& problems) {
  const auto& run = loaded.run;
  problems.check(loaded, "teacher.source", [&] { teacher::check_teacher_source(run.teacher.source); });
  problems.check(loaded, "student.kind", [&] { (void)student::ignored_keys(run.student.kind); });
  problems.check(loaded, "distill.method", [&] { (void)distill::method_terms(run.distill.method); });
  for (const auto& [key, settings] : {std::pair("distill.alpha", &run.distill.alpha),
                                      {"distill.temperature", &run.distill.temperature},
                                      {"distill.beta", &run.distill.beta}}) {
    problems.check(loaded, fmt::format("{}.schedule", key), [&] { distill::check_schedule(settings->schedule, key); });
  }
}

void warn_of(const config::LoadedConfig& loaded, const std::string& section, const std::vector<std::string>& keys,
             const std::string& with) {
  const config::RunConfig defaults;
  for (const auto& key : keys) {
    const auto whole = fmt::format("{}.{}", section, key);
    for (const auto& [said, where] : loaded.sources) {
      if (where.starts_with("preset ") || (said != whole && !said.starts_with(fmt::format("{}.", whole)))) continue;
      // A file with every key in it asks for nothing where it says the default.
      const auto* setting = config::find_setting(said);
      if (setting == nullptr || setting->get(loaded.run) == setting->get(defaults)) continue;
      spdlog::warn("{}: {} has no effect with {}", where, said, with);
    }
  }
}

}  // namespace

void check_names(const config::LoadedConfig& loaded) {
  Problems problems;
  add_unknown_names(loaded, problems);
  problems.raise();
}

void check_settings(const config::LoadedConfig& loaded) {
  const auto& run = loaded.run;
  Problems problems;
  if (run.teacher.model.empty()) problems.add("teacher.model is not set: name a model, such as --teacher stories260K");
  if (run.data.train.empty() && run.data.sources.empty()) problems.add("data.train is not set: name shards or text, such as --train FILE");
  add_unknown_names(loaded, problems);
  problems.raise();
  problems.check(loaded, "", [&] { distill::check_before_length(run.distill, run.train.max_steps); });
  problems.raise();
}

void warn_of_ignored_keys(const config::LoadedConfig& loaded) {
  const std::string &method = loaded.run.distill.method, &kind = loaded.run.student.kind;
  warn_of(loaded, "distill", distill::ignored_keys(method), fmt::format("distill.method = \"{}\"", method));
  warn_of(loaded, "student", student::ignored_keys(kind), fmt::format("student.kind = \"{}\"", kind));
}

void check_stages(const config::RunConfig& config, const student::StudentShape& student) {
  const auto& settings = config.distill;
  std::vector<distill::Stage> stages;
  try {
    stages = distill::make_method(settings, /*total_steps=*/1000, /*num_epochs=*/4)->stages();  // alike at any length
  } catch (const ConfigError&) {
    return;  // of this length alone, or told with the run's own
  }
  std::set<std::string> groups;
  for (const auto& parameter : student.parameters()) groups.insert(parameter.group);
  for (const auto& stage : stages) {
    if (stage.aligns_layers && !student.keeps_teacher_layers()) {
      throw ConfigError(
          "distill.method = \"{}\" compares each layer with the teacher's, which student.kind = \"{}\" does not keep: set student.kind = "
          "\"convert\"",
          settings.method, student.kind());
    }
    if (stage.compares_matrices && student.num_mixing_matrices() == 0) {
      throw ConfigError(
          "distill.method = \"{}\": its stage {} compares the matrices by which layers mix tokens, and none of this student's mixers has "
          "one that is known without the tokens: set student.mixers = \"mlstm\", or distill.method = \"convert\"",
          settings.method, stage.name);
    }
    if (const int64_t rows = config.train.micro_batch_size; stage.rows_before >= rows) {
      throw ConfigError(
          "distill.method = \"{}\": in its stage {} a row starts where {} other rows of its micro-batch ended, and train.micro_batch_size "
          "is {}: set it to {} or more",
          settings.method, stage.name, stage.rows_before, rows, stage.rows_before + 1);
    }
    for (const auto& [group, rate] : stage.rates) {
      if (groups.empty() || groups.contains(group)) continue;
      throw ConfigError("distill.method = \"{}\": its stage {} trains the parameter group '{}', a student of kind \"{}\" has {}{}",
                        settings.method, stage.name, group, student.kind(), join({groups.begin(), groups.end()}, ", "),
                        student.keeps_teacher_layers() ? ": name another mixer beside attention in student.mixers" : "");
    }
  }
}

}  // namespace distil_xlstm::train
