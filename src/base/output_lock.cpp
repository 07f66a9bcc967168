#include "base/output_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/temporary_path.h"

namespace distil_xlstm {
namespace {

constexpr std::string_view kInside = ".distil-xlstm.lock", kBeside = ".distil-xlstm-lock";

// "process 123" as the lock's file has it.
std::string holder_of(int fd) {
  std::array<char, 32> text{};
  const ssize_t size = ::pread(fd, text.data(), text.size(), 0);
  const std::string pid(text.data(), static_cast<size_t>(std::max<ssize_t>(size, 0)));
  const bool is_known = !pid.empty() && pid.find_first_not_of("0123456789") == std::string::npos;
  return is_known ? "process " + pid : "another process";
}

// Whether the path still is the file that is held: a directory may be renamed, and another come in its place, with a lock of its own.
bool is_same_file(int fd, const fs::path& path) {
  struct stat held{}, named{};
  return ::fstat(fd, &held) == 0 && ::lstat(path.c_str(), &named) == 0 && held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

}  // namespace

OutputLock::OutputLock(const fs::path& directory, Place place) {
  const fs::path target = resolved_output(directory);
  const fs::path parent = target.has_parent_path() ? target.parent_path() : fs::path(".");
  path_ = place == Place::inside ? target / kInside : parent / fmt::format(".{}{}", target.filename().string(), kBeside);
  try {
    constexpr int kMaxTries = 10'000;  // others that come and go take the directory or the file away; so many do not
    for (int tries = 1;; ++tries) {
      make_directories(place == Place::inside ? target : parent);
      if (take(directory)) break;
      if (tries == kMaxTries)
        throw IoError("{}: cannot be locked, the file vanishes each time ({}): try again, or choose another place", path_.string(),
                      std::strerror(errno));
    }
  } catch (...) {
    remove_made();
    throw;
  }
  const std::string pid = std::to_string(::getpid());
  // For the message of the next one; the lock holds without it.
  if (::ftruncate(fd_, 0) != 0 || ::pwrite(fd_, pid.data(), pid.size(), 0) < 0) return;
}

OutputLock::~OutputLock() {
  std::error_code ignored;
  if (fd_ >= 0) {
    if (is_same_file(fd_, path_)) fs::remove(path_, ignored);
    ::close(fd_);
  }
  remove_made();
}

void OutputLock::remove_made() const {
  for (auto it = made_.rbegin(); it != made_.rend(); ++it) ::rmdir(it->c_str());
}

void OutputLock::make_directories(const fs::path& directory) {
  constexpr int kMaxAttempts = 1000;
  for (int attempt = 1;; ++attempt) {
    std::vector<fs::path> missing;
    for (fs::path path = directory; !path.empty() && !fs::exists(path); path = path.parent_path()) missing.push_back(path);
    bool has_vanished = false;
    for (auto it = missing.rbegin(); it != missing.rend() && !has_vanished; ++it) {
      std::error_code error;
      if (fs::create_directory(*it, error)) made_.push_back(*it);
      // Another process made it, and may have taken it, or what it lies in, away again.
      const fs::file_status now = fs::symlink_status(*it);
      has_vanished = attempt < kMaxAttempts && ((error == std::errc::file_exists && (!fs::exists(now) || fs::is_directory(now))) ||
                                                error == std::errc::no_such_file_or_directory);
      if (error && !has_vanished) throw IoError("{}: cannot make the directory: {}", it->string(), error.message());
    }
    if (!has_vanished) return;
  }
}

// False, with errno, where the one that held it before has taken the file, or the directory, away.
bool OutputLock::take(const fs::path& directory) {
  const int fd = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0 && errno == ENOENT) return false;
  if (fd < 0) throw IoError("{}: cannot create: {}", path_.string(), std::strerror(errno));
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    const std::string holder = holder_of(fd);
    ::close(fd);
    throw ConfigError("{}: {} is writing there: wait until it has ended, or choose another place", directory.string(), holder);
  }
  const bool is_mine = is_same_file(fd, path_);
  if (is_mine) {
    fd_ = fd;
  } else {
    ::close(fd);
    errno = ESTALE;
  }
  return is_mine;
}

bool is_lock_name(std::string_view name) {
  return name == kInside || (name.starts_with('.') && name.ends_with(kBeside));
}

}  // namespace distil_xlstm
