// Outputs that are written into instead of being replaced.
#pragma once

#include "base/file.h"

namespace distil_xlstm {

// Terminals, pipes, devices and what /dev/stdout or /dev/fd/N leads to, be it a file: write_file_atomic adds to their end.
bool is_stream(const fs::path& path);

}  // namespace distil_xlstm
