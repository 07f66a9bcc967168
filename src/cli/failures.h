// What ends a command early, told to the user.
#pragma once

#include <string>
#include <vector>

namespace distil_xlstm::cli {

// To be called in a catch block: one line on standard error for the exception at hand, and the exit code that goes with it. Where memory
// ran out it says what to lower, which depends on the command among `arguments`.
int report_failure(const std::vector<std::string>& arguments);

}  // namespace distil_xlstm::cli
