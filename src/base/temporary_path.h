// Names beside a target under which it is built before it is renamed. A living process keeps a lock on what it builds: so the next one
// tells what a killed process has left from what another is writing, also across containers that share a disk.
#pragma once

#include <string_view>

#include "base/file.h"

namespace distil_xlstm {

// A new file or directory NAME.distil-xlstm-tmp-PID-N beside `target`, locked. What lies there at the end, moved or not, is removed.
class TemporaryPath {
 public:
  enum class Kind { file, directory };
  TemporaryPath(const fs::path& target, Kind kind);
  ~TemporaryPath();
  TemporaryPath(const TemporaryPath&) = delete;
  TemporaryPath& operator=(const TemporaryPath&) = delete;

  [[nodiscard]] const fs::path& path() const { return path_; }
  [[nodiscard]] int descriptor() const { return fd_; }  // of a file: open for writing

 private:
  fs::path path_;
  int fd_ = -1;
};

// Where an output goes in truth: without a slash at the end, links followed. Throws ConfigError for a link that leads nowhere.
fs::path resolved_output(const fs::path& path);

// A name beside `target` for what is there, while a new one takes its place: NAME.distil-xlstm-old-PID-N.
fs::path set_aside_name(const fs::path& target);

// NAME.distil-xlstm-tmp-PID-N or NAME.distil-xlstm-old-PID-N.
bool is_temporary_name(std::string_view name);

// Removes what killed processes left beside `target` under its names. Where one was killed after it had set the old `target` aside, that is
// put back.
void clear_abandoned(const fs::path& target);

}  // namespace distil_xlstm
