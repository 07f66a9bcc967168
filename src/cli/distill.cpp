// distil-xlstm distill: trains a student from a teacher and text.
#include <iostream>
#include <memory>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/option_checks.h"
#include "cli/run_options.h"
#include "train/distill_run.h"

namespace distil_xlstm::cli {
namespace {

struct Options {
  RunOptions run;
  bool resume = false, overwrite = false, print_settings = false;
  int64_t stop_after = 0;
};

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

void distill(const Options& options) {
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

}  // namespace

void add_distill_command(CLI::App& app) {
  auto* command = app.add_subcommand("distill", "Train an xLSTM student from a teacher and text");
  auto options = std::make_shared<Options>();
  command->add_flag("--resume", options->resume, "Go on from the last checkpoint in --output");
  command->add_flag("--overwrite", options->overwrite, "Replace a run that lies in --output");
  command->add_flag("--print-settings", options->print_settings,
                    "Print the settings in force as a run file, with their sources as comments, and exit");
  command->add_option("--stop-after", options->stop_after, "Save and exit after so many steps of this call")->check(at_least(1));
  options->run.add_to(*command);
  command->callback([options] { distill(*options); });
}

}  // namespace distil_xlstm::cli
