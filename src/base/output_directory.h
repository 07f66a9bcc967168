// One rule for everything that the commands write: a directory is new, empty, or holds an earlier result of the same kind, and what this
// program did not write there is never removed.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace distil_xlstm {

// What a command makes of a directory.
struct OutputKind {
  std::string name;                                          // "export": it holds x and is no export
  std::function<bool(const fs::path& directory)> is_result;  // by its marker: a result, finished or not, lies there
  std::function<bool(const fs::path& entry)> is_leftover{};  // what a killed call may leave before the marker, temporary names aside
};

enum class OutputState { empty, result };

// What lies at `directory` (nothing counts as empty). `shown` names it in messages, as "--output x". Throws ConfigError where the command
// may not write, and for a place inside one of `inputs`, which are read, or around it; one inside a directory of `models` is allowed. What
// is not there is passed over.
OutputState check_output_directory(const fs::path& directory, const std::string& shown, const OutputKind& kind,
                                   const std::vector<fs::path>& inputs = {}, const std::vector<fs::path>& models = {});

// The first entry, by name, that is neither temporary, nor a lock, nor a leftover of `kind`; "" where there is none.
std::string first_stranger(const fs::path& directory, const OutputKind& kind);

// For a directory that is replaced whole: not one that the system holds in its place (a mount point, the current directory, one around it).
void check_replaceable(const fs::path& directory, const std::string& shown);

// The same for one file, which replaces what is there: no directory, none of the inputs, its folder there or to be made. Inside a directory
// that the command reads, such as a run, it is new or `is_earlier`, a result of the same kind. Streams are written into: any may be named.
void check_output_file(const fs::path& file, std::string_view option, const std::vector<fs::path>& inputs = {},
                       const std::function<bool(const fs::path& file)>& is_earlier = {});

// The same file under a second name; a copy where the file system has no such links.
void link_or_copy(const fs::path& from, const fs::path& to);

// Takes what lies in `from` and is not `is_own` along into `to`: what a user put beside a result that is replaced whole.
void carry_over(const fs::path& from, const fs::path& to, const std::function<bool(const std::string& name)>& is_own);

}  // namespace distil_xlstm
