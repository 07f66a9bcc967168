// eval --tasks.
#pragma once

namespace distil_xlstm::cli {
struct EvalOptions;
}

namespace distil_xlstm::commands {

void run_eval_tasks(const cli::EvalOptions& options);

}  // namespace distil_xlstm::commands
