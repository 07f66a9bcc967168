// distil-xlstm distill: trains a student from a teacher and text.
#include <iostream>
#include <memory>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/options/distill.h"
#include "commands/compute.h"
#include "train/distill_run.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::DistillOptions;

// A resumed run takes its saved settings; a run file beside --resume must say the same.
config::LoadedConfig settings_of(const Options& options) {
  if (!options.resume || !options.run.file.empty() || !options.run.preset.empty()) return options.run.load();
  std::string output = config::RunConfig{}.output;
  for (const auto& given : options.run.overrides()) {
    if (given.key == "output") output = given.text;
  }
  return train::saved_settings(output, options.run.overrides());
}

// The run file with the origin of each value behind it, as a comment.
std::string with_sources(const config::LoadedConfig& settings) {
  const auto source_of = [&](const std::string& key) {
    std::set<std::string> sources;  // of the key, or of the keys in its group
    for (const auto& setting : config::all_settings()) {
      if (setting.key != key && !setting.key.starts_with(key + ".")) continue;
      const auto found = settings.sources.find(setting.key);
      sources.insert(found == settings.sources.end() ? "default" : found->second);
    }
    return join({sources.begin(), sources.end()}, ", ");
  };
  std::string page, section;
  std::istringstream lines(config::to_toml(settings.run));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with('[')) section = line.substr(1, line.size() - 2) + ".";
    const auto end_of_key = line.find(" = ");
    if (!line.starts_with('[') && end_of_key != std::string::npos) {
      line = fmt::format("{:<48} # {}", line, source_of(fmt::format("{}{}", section, line.substr(0, end_of_key))));
    }
    page += line;
    page += '\n';
  }
  return page;
}

}  // namespace

void run_distill(const cli::DistillOptions& options) {
  const auto settings = settings_of(options);
  if (options.print_settings) {
    std::cout << with_sources(settings);
    return;
  }
  std::cerr << config::describe(settings);
  const auto status = train::run_distillation(
      {.config = settings, .resume = options.resume, .overwrite = options.overwrite, .stop_after_steps = options.stop_after});
  if (status == train::TrainStatus::stopped) {
    spdlog::info("stopped after --stop-after {}; go on with: distil-xlstm distill --resume --output {}", options.stop_after,
                 settings.run.output);
  }
  std::cout << settings.run.output << "\n";
}

}  // namespace distil_xlstm::commands
