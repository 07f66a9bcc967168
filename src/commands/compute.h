// The commands that compute, one function each; src/cli holds their options. All of them throw the errors of base/error.h.
#pragma once

#include "cli/compute_commands.h"

namespace distil_xlstm::commands {

void run_bench(const cli::BenchOptions& options);
void run_distill(const cli::DistillOptions& options);
void run_eval(const cli::EvalOptions& options);
void run_export(const cli::ExportOptions& options);
void run_generate(const cli::GenerateOptions& options);
void run_plan(const cli::PlanOptions& options);
void run_selfcheck(const cli::SelfcheckOptions& options);
void run_synthesize(const cli::SynthesizeOptions& options);

// Versions, CPU capability, threads, and what was found of CUDA: lines of text.
std::string system_info();

}  // namespace distil_xlstm::commands
