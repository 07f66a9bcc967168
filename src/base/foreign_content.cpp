#include "base/foreign_content.h"

#include <algorithm>
#include <fstream>

#include "base/error.h"
#include "base/text.h"

namespace distil_xlstm {
namespace {

constexpr std::string_view kPointer = "version https://git-lfs.github.com/spec/";
constexpr size_t kMaxPointerBytes = 1024;  // of the specification
constexpr std::string_view kSpace = " \t\r\n";

std::string first_line(std::string_view text) {
  constexpr size_t kShown = 120;
  std::string_view line = text.substr(0, text.find_first_of("\r\n"));
  if (line.size() <= kShown) return std::string(line);
  return std::string(line.substr(0, valid_utf8_prefix(line.substr(0, kShown)))) + " …";
}

}  // namespace

std::string foreign_content(std::string_view content, ContentKind wanted) {
  if (content.starts_with(kPointer) && content.size() <= kMaxPointerBytes) {
    return "a git-lfs pointer, not the file itself: run `git lfs pull` in the clone that it came from, or download the file again";
  }
  if (wanted == ContentKind::text) return "";
  if (content.starts_with("\xEF\xBB\xBF")) content.remove_prefix(3);
  content.remove_prefix(std::min(content.find_first_not_of(kSpace), content.size()));
  const std::string beginning = to_lower(content.substr(0, 64));
  if (beginning.starts_with("<!doctype html") || beginning.starts_with("<html")) {
    return "a web page (of an error, or of a site that wants a login), not the file itself: download it again";
  }
  if (beginning.starts_with("<?xml") || beginning.starts_with("<error>")) {
    return "an XML page (most likely a server's error), not the file itself: download it again";
  }
  if (wanted == ContentKind::rows) return "";
  if (beginning.starts_with("{\"error\"") || beginning.starts_with("{\"message\"") || beginning.starts_with("{\"detail\"")) {
    return fmt::format("a server's message, not the file itself ({}): download it again", first_line(content));
  }
  return "";
}

std::string read_beginning(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::string beginning(kMaxPointerBytes + 1, '\0');
  stream.read(beginning.data(), static_cast<std::streamsize>(beginning.size()));
  beginning.resize(static_cast<size_t>(stream.gcount()));
  return beginning;
}

void throw_if_foreign(std::string_view content, std::string_view where, ContentKind wanted) {
  if (const std::string what = foreign_content(content, wanted); !what.empty()) throw DataError("{}: this is {}", where, what);
}

}  // namespace distil_xlstm
