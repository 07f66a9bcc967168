// eval --passkey.
#pragma once

namespace distil_xlstm::cli {
struct EvalOptions;
}

namespace distil_xlstm::commands {

void run_eval_passkey(const cli::EvalOptions& options);

}  // namespace distil_xlstm::commands
