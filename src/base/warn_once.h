// Warnings about files that one command may open several times.
#pragma once

#include <string>

namespace distil_xlstm {

// Logs `message` as a warning unless this process has done so before.
void warn_once(const std::string& message);

}  // namespace distil_xlstm
