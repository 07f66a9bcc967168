#include "cli/options/distill.h"

#include <memory>

#include "cli/commands.h"
#include "cli/compute_commands.h"
#include "cli/option_checks.h"

namespace distil_xlstm::cli {

void add_distill_command(CLI::App& app) {
  auto* command = app.add_subcommand("distill", "Train an xLSTM student from a teacher and text");
  auto options = std::make_shared<DistillOptions>();
  command->add_flag("--resume", options->resume, "Go on from the last checkpoint in --output");
  command->add_flag("--overwrite", options->overwrite, "Replace a run that lies in --output");
  command->add_flag("--print-settings", options->print_settings,
                    "Print the settings in force as a run file, with their sources as comments, and exit");
  command->add_option("--stop-after", options->stop_after, "Save and exit after so many steps of this call")->check(at_least(1));
  options->run.add_to(*command);
  command->callback([options] { compute_commands().run_distill(*options); });
}

}  // namespace distil_xlstm::cli
