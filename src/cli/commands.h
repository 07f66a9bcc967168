// The subcommands of distil-xlstm; each file adds its options to `app` and runs in the callback.
#pragma once

#include <CLI/CLI.hpp>

namespace distil_xlstm::cli {

void add_fetch_command(CLI::App& app);
void add_prepare_command(CLI::App& app);
void add_synthesize_command(CLI::App& app);
void add_plan_command(CLI::App& app);
void add_distill_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_tokenize_command(CLI::App& app);
void add_export_command(CLI::App& app);
void add_report_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_selfcheck_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_completion_command(CLI::App& app);

}  // namespace distil_xlstm::cli
