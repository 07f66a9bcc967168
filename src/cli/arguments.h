// The words of the command line before CLI11 reads them.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace distil_xlstm::cli {

// The program's own options (--log-level, --version) may stand on either side of the command: they are moved before it. Throws ConfigError
// for a command or an option that does not exist, with the nearest name: CLI11 would speak of a missing required option first.
std::vector<std::string> arrange_arguments(const CLI::App& app, const std::vector<std::string>& words);

}  // namespace distil_xlstm::cli
