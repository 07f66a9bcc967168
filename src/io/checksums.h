// Sizes and XXH3-64 of files, kept as JSON beside them.
#pragma once

#include <span>
#include <string>

#include "base/file.h"
#include "base/json.h"

namespace distil_xlstm::io {

std::string xxh3_hex(std::span<const std::byte> bytes);  // 16 digits

// {"bytes": ..., "xxh3": "..."}
json file_record(const fs::path& path);

// Throws DataError that names the file when it is missing or is not the one that the record is of; `recorder` is the file that holds the
// record, for messages.
void check_file(const fs::path& path, const json& record, const std::string& recorder);

// XXH3-64 of a JSON object without its key "checksum", as compact text.
std::string own_checksum(json object);

}  // namespace distil_xlstm::io
