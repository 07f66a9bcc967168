// eval --repetition.
#pragma once

namespace distil_xlstm::cli {
struct EvalOptions;
}

namespace distil_xlstm::commands {

void run_eval_repetition(const cli::EvalOptions& options);

}  // namespace distil_xlstm::commands
