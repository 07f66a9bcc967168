// A small binary file of state (CBOR behind a mark and a checksum) that is replaced whole: what an interrupted writer of shards needs to go
// on.
#pragma once

#include <optional>
#include <string_view>

#include "base/file.h"
#include "base/json.h"

namespace distil_xlstm::data {

void write_state(const fs::path& path, const json& state);

// An object; nothing when there is no file. Throws DataError when it is damaged.
std::optional<json> read_state(const fs::path& path);

}  // namespace distil_xlstm::data
