#include "io/checksums.h"

#include "base/error.h"
#include "base/hash.h"

namespace distil_xlstm::io {

std::string xxh3_hex(std::span<const std::byte> bytes) {
  return fmt::format("{:016x}", xxh3_64(bytes));
}

json file_record(const fs::path& path) {
  const MappedFile file(path);
  return {{"bytes", file.bytes().size()}, {"xxh3", xxh3_hex(file.bytes())}};
}

void check_file(const fs::path& path, const json& record, const std::string& recorder) {
  const std::string where = path.string();
  if (!fs::exists(path)) throw DataError("{}: missing: {} recorded it", where, recorder);
  const MappedFile file(path);
  const auto size_bytes = require<uint64_t>(record, "bytes", where);
  if (file.bytes().size() != size_bytes)
    throw DataError("{}: {} bytes, {} recorded {}: the file is cut or was changed", where, file.bytes().size(), recorder, size_bytes);
  const auto wanted = require<std::string>(record, "xxh3", where);
  if (const auto actual = xxh3_hex(file.bytes()); actual != wanted)
    throw DataError("{}: XXH3-64 is {}, {} recorded {}: the content is damaged or was changed", where, actual, recorder, wanted);
}

std::string own_checksum(json object) {
  object.erase("checksum");
  const std::string text = object.dump();
  return xxh3_hex(std::as_bytes(std::span(text)));
}

}  // namespace distil_xlstm::io
