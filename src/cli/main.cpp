// distil-xlstm: one program, one subcommand a task.
#include <algorithm>
#include <iostream>

#include "base/log.h"
#include "base/printable.h"
#include "base/standard_streams.h"
#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/compute_commands.h"
#include "cli/failures.h"

namespace distil_xlstm::cli {
namespace {

int run(int argc, char** argv) {
  CLI::App app("Distils a transformer language model into a recurrent xLSTM one, then evaluates and runs the result.", "distil-xlstm");
  app.set_version_flag("--version", "distil-xlstm " DISTIL_XLSTM_VERSION, "Print the version and exit");
  const auto print_system_info = [](int64_t /*count*/) { throw CLI::CallForVersion(compute_commands().system_info(), 0); };
  app.add_flag_function("--system-info", print_system_info, "Print versions, threads, and what was found of CUDA, and exit");
  std::string verbosity = "info";
  app.add_option("--log-level", verbosity, "How much to say; may also stand after the command")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.require_subcommand(1);
  app.get_formatter()->column_width(36);
  app.footer("Each command explains itself: distil-xlstm COMMAND --help");
  app.parse_complete_callback([&] { init_logging(verbosity); });
  add_fetch_command(app);
  add_prepare_command(app);
  add_synthesize_command(app);
  add_plan_command(app);
  add_distill_command(app);
  add_eval_command(app);
  add_generate_command(app);
  add_tokenize_command(app);
  add_export_command(app);
  add_report_command(app);
  add_inspect_command(app);
  add_selfcheck_command(app);
  add_bench_command(app);
  add_completion_command(app);
  if (argc == 1) {
    std::cerr << app.help();
    return 2;
  }
  auto words = arrange_arguments(app, {argv + 1, argv + argc});
  std::reverse(words.begin(), words.end());  // as CLI11 takes them
  try {
    app.parse(words);
    return 0;
  } catch (const CLI::CallForHelp& error) {
    return app.exit(error);
  } catch (const CLI::CallForAllHelp& error) {
    return app.exit(error);
  } catch (const CLI::CallForVersion& error) {
    return app.exit(error);
  } catch (const CLI::ParseError& error) {
    std::cerr << "distil-xlstm: " << printable_message(error.what()) << "\nRun with --help for the options.\n";
    return 2;
  }
}

}  // namespace
}  // namespace distil_xlstm::cli

int main(int argc, char** argv) {
  distil_xlstm::prepare_standard_streams();
  int exit_code = 0;
  try {
    exit_code = distil_xlstm::cli::run(argc, argv);
  } catch (...) {
    exit_code = distil_xlstm::cli::report_failure({argv + 1, argv + argc});
  }
  return distil_xlstm::finish_output(exit_code);
}
