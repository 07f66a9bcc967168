#include "cli/options/export.h"

#include <memory>

#include "cli/commands.h"
#include "cli/compute_commands.h"
#include "config/choices.h"

namespace distil_xlstm::cli {

void add_export_command(CLI::App& app) {
  auto options = std::make_shared<ExportOptions>();
  CLI::App* command = app.add_subcommand(
      "export", "Write a student as a directory that stands alone and that Python opens: transformers, or the package xlstm");
  command->add_option("--model,-m", options->model, "Run or checkpoint")->required();
  command->add_option("--output,-o", options->output, "Directory to make")->required();
  command->add_option("--layout", options->layout, "How sLSTM weights are stored: as the package's cuda or vanilla backend has them")
      ->check(CLI::IsMember(config::names_of<config::SlstmLayout>()))
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "fp32, bf16 or fp16")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_flag("--overwrite", options->overwrite, "Replace an earlier export; what else lies there stays");
  command->callback([options] { compute_commands().run_export(*options); });
}

}  // namespace distil_xlstm::cli
