// One process at a time writes to a directory.
#pragma once

#include <string_view>

#include "base/file.h"

namespace distil_xlstm {

// Held while a process writes to a directory; those that read need none. The lock is the system's, on a file that goes with it: one that a
// killed process left keeps nobody out.
class OutputLock {
 public:
  enum class Place {
    inside,  // of a directory that is written in place, and made here if need be
    beside   // a directory that is replaced whole
  };
  // Throws ConfigError that names the process which holds it.
  explicit OutputLock(const fs::path& directory, Place place = Place::inside);
  ~OutputLock();  // what it made of the directory goes where that is still empty
  OutputLock(const OutputLock&) = delete;
  OutputLock& operator=(const OutputLock&) = delete;

 private:
  void make_directories(const fs::path& directory);
  void remove_made() const;
  bool take(const fs::path& directory);

  fs::path path_;
  std::vector<fs::path> made_;  // directories, the outermost first
  int fd_ = -1;
};

bool is_lock_name(std::string_view name);

}  // namespace distil_xlstm
