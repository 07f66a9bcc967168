#include "base/printable.h"

#include <fmt/format.h>

#include <cstdint>
#include <optional>

#include "base/text.h"

namespace distil_xlstm {
namespace {

// Bytes of the character at `position` of valid UTF-8.
size_t character_length(std::string_view text, size_t position) {
  const auto first = static_cast<unsigned char>(text[position]);
  return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

// The number of the valid character that `bytes` are, where it is one that a terminal acts on.
std::optional<uint32_t> control_code(std::string_view bytes) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(bytes[i])); };
  uint32_t code = byte(0);
  if (bytes.size() == 2) code = (byte(0) & 0x1FU) << 6U | (byte(1) & 0x3FU);
  if (bytes.size() == 3) code = (byte(0) & 0xFU) << 12U | (byte(1) & 0x3FU) << 6U | (byte(2) & 0x3FU);
  if (bytes.size() == 4) return std::nullopt;
  const bool is_control = code < 0x20 || (code >= 0x7F && code <= 0x9F);
  const bool turns_direction = (code >= 0x202A && code <= 0x202E) || (code >= 0x2066 && code <= 0x2069);
  return is_control || turns_direction ? std::optional(code) : std::nullopt;
}

}  // namespace

std::string printable(std::string_view text, bool keep_newlines) {
  const std::string clean = replace_invalid_utf8(text);
  std::string shown;
  shown.reserve(clean.size());
  for (size_t at = 0; at < clean.size();) {
    const std::string_view character = std::string_view(clean).substr(at, character_length(clean, at));
    at += character.size();
    const auto code = character == "\n" && keep_newlines ? std::nullopt : control_code(character);
    if (!code) {
      shown += character;
    } else if (*code == '\n' || *code == '\t' || *code == '\r') {
      shown += *code == '\n' ? "\\n" : *code == '\t' ? "\\t" : "\\r";
    } else {
      shown += *code < 0x100 ? fmt::format("\\x{:02x}", *code) : fmt::format("\\u{:04x}", *code);
    }
  }
  return shown;
}

std::string printable_message(std::string_view message) {
  constexpr size_t kLongest = 16384;
  std::string text = printable(message, /*keep_newlines=*/true);
  if (text.size() > kLongest) text = text.substr(0, valid_utf8_prefix(std::string_view(text).substr(0, kLongest))) + " …";
  return text;
}

}  // namespace distil_xlstm
