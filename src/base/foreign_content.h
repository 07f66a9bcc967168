// What lies in the place of a file that was not downloaded as such: a git-lfs pointer, a web page, a server's error.
#pragma once

#include <string>
#include <string_view>

#include "base/file.h"

namespace distil_xlstm {

enum class ContentKind { binary, json, rows, text };  // rows: JSONL

// "" or what a file that begins with `content` is instead of what was wanted, and what to do: "a git-lfs pointer, not the file itself:
// ...". A text may well be a web page, and a row may well hold a message.
std::string foreign_content(std::string_view content, ContentKind wanted);

// The first bytes of a file, enough for the above: less than its whole only where it is larger than any pointer.
std::string read_beginning(const fs::path& path);

// Throws DataError("{where}: is {foreign_content}") where there is something to tell.
void throw_if_foreign(std::string_view content, std::string_view where, ContentKind wanted);

}  // namespace distil_xlstm
