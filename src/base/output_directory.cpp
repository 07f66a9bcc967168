#include "base/output_directory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "base/error.h"
#include "base/output_lock.h"
#include "base/output_stream.h"
#include "base/temporary_path.h"

namespace distil_xlstm {
namespace {

constexpr const char* kAdvice = "choose a new or an empty directory";

// Whether `path` is `directory` or lies below it. Both canonical.
bool is_within(const fs::path& path, const fs::path& directory) {
  const auto [end, rest] = std::mismatch(directory.begin(), directory.end(), path.begin(), path.end());
  return end == directory.end();
}

// A directory can only be made below directories.
void check_parents(const fs::path& path, const std::string& shown) {
  fs::path parent = fs::absolute(path).parent_path();
  while (!fs::exists(parent) && parent.has_relative_path()) parent = parent.parent_path();
  if (!fs::is_directory(parent)) throw ConfigError("{}: {} is a file: nothing can be made below it", shown, parent.string());
  if (::access(parent.c_str(), W_OK | X_OK) != 0) throw IoError("{}: {} cannot be written to", shown, parent.string());
}

// Text is read with all that lies below it; of a model the files are known, so only a place around it would lose them.
void check_apart(const fs::path& output, const std::string& shown, const std::vector<fs::path>& inputs, bool may_be_inside) {
  const fs::path place = fs::weakly_canonical(fs::absolute(output));
  for (const fs::path& input : inputs) {
    std::error_code error;
    const fs::path read = fs::canonical(input, error);
    if (error) continue;
    if (place == read) throw ConfigError("{}: is what the command reads: choose another place", shown);
    if (!may_be_inside && is_within(place, read))
      throw ConfigError("{}: lies inside {}, which the command reads: choose another place", shown, input.string());
    if (is_within(read, place))
      throw ConfigError("{}: {}, which the command reads, lies inside it: choose another place", shown, input.string());
  }
}

}  // namespace

std::string first_stranger(const fs::path& directory, const OutputKind& kind) {
  std::string first;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (is_lock_name(name) || is_temporary_name(name) || (kind.is_leftover && kind.is_leftover(entry.path()))) continue;
    if (first.empty() || name < first) first = name;
  }
  return first;
}

OutputState check_output_directory(const fs::path& directory, const std::string& shown, const OutputKind& kind,
                                   const std::vector<fs::path>& inputs, const std::vector<fs::path>& models) {
  if (directory.empty()) throw ConfigError("{}: names no directory: {}", shown, kAdvice);
  const fs::path place = resolved_output(directory);
  const fs::file_status status = fs::status(place);
  if (fs::exists(status) && !fs::is_directory(status)) throw ConfigError("{}: is a file: {}", shown, kAdvice);
  if (!fs::exists(status)) check_parents(place, shown);
  check_apart(place, shown, inputs, /*may_be_inside=*/false);
  check_apart(place, shown, models, /*may_be_inside=*/true);
  if (!fs::exists(status)) return OutputState::empty;
  if (::access(place.c_str(), R_OK | W_OK | X_OK) != 0) throw IoError("{}: cannot be read and written to", shown);
  if (kind.is_result(place)) return OutputState::result;
  const std::string stranger = first_stranger(place, kind);
  if (!stranger.empty())
    throw ConfigError("{}: holds {}, is not empty and no {}: {}; nothing was changed", shown, stranger, kind.name, kAdvice);
  return OutputState::empty;
}

void check_replaceable(const fs::path& directory, const std::string& shown) {
  const fs::path place = fs::weakly_canonical(fs::absolute(directory));
  if (is_within(fs::current_path(), place))
    throw ConfigError("{}: the current directory is in it, so it cannot be replaced whole: name a directory in it", shown);
  struct stat here{}, above{};
  if (::stat(place.c_str(), &here) == 0 && ::stat(place.parent_path().c_str(), &above) == 0 && here.st_dev != above.st_dev)
    throw ConfigError("{}: is a mount point, so it cannot be replaced whole: name a directory in it", shown);
}

void check_output_file(const fs::path& file, std::string_view option, const std::vector<fs::path>& inputs,
                       const std::function<bool(const fs::path& file)>& is_earlier) {
  const std::string name = file.empty() ? "\"\"" : file.string(), shown = option.empty() ? name : fmt::format("{} {}", option, name);
  if (file.empty()) throw ConfigError("{}: names no file", shown);
  if (fs::is_directory(file) || !file.has_filename()) throw ConfigError("{}: is a directory, a file's name is needed", shown);
  if (is_stream(file)) return;
  const fs::path place = fs::weakly_canonical(fs::absolute(resolved_output(file)));
  check_parents(place, shown);
  for (const fs::path& input : inputs) {
    std::error_code error;
    const fs::path read = fs::canonical(input, error);
    if (error || !is_within(place, read)) continue;
    if (place == read) throw ConfigError("{}: is what the command reads: choose another file", shown);
    if (fs::exists(place) && !(is_earlier && is_earlier(place)))
      throw ConfigError("{}: lies in {}, which the command reads, and is no result of its kind: choose another file", shown,
                        input.string());
  }
}

void link_or_copy(const fs::path& from, const fs::path& to) {
  fs::create_directories(to.parent_path());
  std::error_code error;
  fs::create_hard_link(from, to, error);
  if (error) fs::copy_file(from, to);
}

namespace {

// One entry as it is, a directory without what it holds.
void bring(const fs::directory_entry& entry, const fs::path& to) {
  if (entry.is_symlink()) {
    fs::copy_symlink(entry.path(), to);
  } else if (entry.is_directory()) {
    fs::create_directory(to, entry.path());
  } else {
    link_or_copy(entry.path(), to);
  }
}

}  // namespace

void carry_over(const fs::path& from, const fs::path& to, const std::function<bool(const std::string& name)>& is_own) {
  for (const auto& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (is_own(name) || is_temporary_name(name) || fs::exists(fs::symlink_status(to / name))) continue;
    bring(entry, to / name);
    if (!entry.is_directory() || entry.is_symlink()) continue;
    for (const auto& inner : fs::recursive_directory_iterator(entry.path())) {
      bring(inner, to / name / inner.path().lexically_relative(entry.path()));
    }
  }
}

}  // namespace distil_xlstm
