#include "data/journal.h"

#include <cstring>

#include "base/error.h"
#include "base/hash.h"
#include "base/json_limits.h"

namespace distil_xlstm::data {
namespace {

constexpr std::string_view kMagic = "DXJOURN1";  // then XXH3-64 of what follows, then CBOR

uint64_t checksum(std::string_view text) {
  return xxh3_64(std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace

void write_state(const fs::path& path, const json& state) {
  std::string body;
  json::to_cbor(state, body);
  const uint64_t sum = checksum(body);
  std::string text(kMagic);
  text.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  write_file_atomic(path, text + body);
}

std::optional<json> read_state(const fs::path& path) {
  if (!fs::exists(path)) return std::nullopt;
  const std::string text = read_file(path);
  const auto damaged = [&] { return DataError("{}: damaged: begin again with --overwrite", path.string()); };
  uint64_t sum = 0;
  const size_t head = kMagic.size() + sizeof sum;
  if (!text.starts_with(kMagic)) {  // CBOR alone: as earlier versions wrote
    json state = parse_cbor(text);
    if (!state.is_object()) throw damaged();
    return state;
  }
  if (text.size() <= head) throw damaged();
  std::memcpy(&sum, text.data() + kMagic.size(), sizeof sum);
  if (checksum(std::string_view(text).substr(head)) != sum) throw damaged();
  json state = parse_cbor(std::string_view(text).substr(head));
  if (!state.is_object()) throw damaged();
  return state;
}

}  // namespace distil_xlstm::data
