// Models that are known by name, and where fetched repositories lie.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace distil_xlstm::io {

// "stories260K" travels with the program, "smollm2-135m-instruct" is fetched.
std::vector<std::string> builtin_model_names();

// Where a built-in model lies or would lie once fetched; nullopt for any other name.
std::optional<fs::path> builtin_model_directory(std::string_view name);

// What is wrong with the files of a built-in model in its directory, by their SHA-256, or "".
std::string builtin_model_fault(std::string_view name);

// `org/name[@revision]` taken apart; the revision is "main" when none is given.
struct RepositoryName {
  std::string organisation, name, revision;
};

// nullopt when the text does not have that form (exactly one slash; letters, digits, '.', '_', '-'; no part that begins with a dot;
// a revision may hold slashes).
std::optional<RepositoryName> parse_repository_name(std::string_view text);

// <cache>/models/<org>--<name>/<revision>, slashes of the revision written as "--".
fs::path fetched_model_directory(const RepositoryName& repository);

}  // namespace distil_xlstm::io
