// What libdistil_xlstm_commands.so exports.
#include <string_view>

#include "commands/compute.h"

// The name is cli::kComputeCommandsSymbol.
extern "C" __attribute__((visibility("default"))) const distil_xlstm::cli::ComputeCommands* distil_xlstm_compute_commands(
    const char* interface) {
  using namespace distil_xlstm::commands;  // NOLINT(google-build-using-namespace): a table of all its functions
  static const distil_xlstm::cli::ComputeCommands commands = {
      .run_bench = run_bench,
      .run_distill = run_distill,
      .run_eval = run_eval,
      .run_export = run_export,
      .run_generate = run_generate,
      .run_plan = run_plan,
      .run_selfcheck = run_selfcheck,
      .run_synthesize = run_synthesize,
      .system_info = system_info,
  };
  return std::string_view(interface) == DX_COMPUTE_INTERFACE ? &commands : nullptr;
}
