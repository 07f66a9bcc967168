#include "cli/options/selfcheck.h"

#include <memory>

#include "cli/commands.h"
#include "cli/compute_commands.h"
#include "cli/option_checks.h"

namespace distil_xlstm::cli {

void add_selfcheck_command(CLI::App& app) {
  auto options = std::make_shared<SelfcheckOptions>();
  CLI::App* command = app.add_subcommand("selfcheck", "Check losses and kernels on this machine and device, in under a minute");
  command->add_option("--device", options->device, "auto, cpu, cuda or cuda:N")->check(device_name())->capture_default_str();
  command->callback([options] { compute_commands().run_selfcheck(*options); });
}

}  // namespace distil_xlstm::cli
