// distil-xlstm distill: trains a student from a teacher and text.
#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/log.h"
#include "cli/commands.h"
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

void distill(const Options& options) {
  const auto settings = settings_of(options);
  if (options.print_settings) {
    std::cout << config::to_toml(settings.run);
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
  command->add_flag("--print-settings", options->print_settings, "Print the settings in force as a run file, and exit");
  command->add_option("--stop-after", options->stop_after, "Save and exit after so many steps of this call")->check(CLI::PositiveNumber);
  options->run.add_to(*command);
  command->callback([options] { distill(*options); });
}

}  // namespace distil_xlstm::cli
