#include "cli/options/plan.h"

#include <memory>

#include "cli/commands.h"
#include "cli/compute_commands.h"
#include "cli/option_checks.h"

namespace distil_xlstm::cli {

void add_plan_command(CLI::App& app) {
  auto* command = app.add_subcommand("plan", "What a run will need and do: parameters, memory, arithmetic, steps, schedule, time");
  auto options = std::make_shared<PlanOptions>();
  command->add_option("--tokens", options->tokens, "Tokens of training text, such as 512M")->default_str("those of the shards, else 512M");
  command->add_option("--memory", options->memory, "Memory of the device, such as 24GiB: says what to change when it does not suffice");
  command->add_option("--tflops", options->tflops, "Speed of the device in TFLOP/s")->check(positive_number())->default_str("measured");
  options->run.add_to(*command);
  command->callback([options] { compute_commands().run_plan(*options); });
}

}  // namespace distil_xlstm::cli
