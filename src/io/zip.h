// One file out of a zip archive (a Python wheel is one).
#pragma once

#include <string_view>

#include "base/file.h"

namespace distil_xlstm::io {

// Writes the member (stored or deflated, its CRC checked) to `target`. Throws DataError when the archive is broken or has no such
// member; nothing is left then.
void extract_zip_member(const fs::path& archive, std::string_view member, const fs::path& target);

}  // namespace distil_xlstm::io
