// --json FILE of the commands that measure or generate.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"

namespace distil_xlstm::commands {

// Throws ConfigError where the file cannot be written, or is one that the command reads. Inside a directory that is read an earlier result
// may be replaced, which has `key`. "" and "-" are no file.
void check_json_output(const std::string& path, const std::vector<fs::path>& inputs, const std::string& key);

}  // namespace distil_xlstm::commands
