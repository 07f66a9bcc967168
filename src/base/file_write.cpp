// The half of file.h that writes: whole or not at all.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <system_error>

#include "base/error.h"
#include "base/file.h"
#include "base/output_stream.h"
#include "base/temporary_path.h"

namespace distil_xlstm {
namespace {

std::string errno_text() {
  return std::error_code(errno, std::generic_category()).message();
}

fs::path parent_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

void make_parent(const fs::path& path) {
  std::error_code error;
  fs::create_directories(parent_of(path), error);
  if (error) throw IoError("{}: cannot make the directory: {}", parent_of(path).string(), error.message());
}

void write_all(int fd, std::string_view content, const fs::path& path) {
  size_t done = 0;
  while (done < content.size()) {
    const ssize_t written = ::write(fd, content.data() + done, content.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) throw IoError("{}: writing failed after {} of {} bytes: {}", path.string(), done, content.size(), errno_text());
    done += static_cast<size_t>(written);
  }
}

// /proc/PID/fd/N where the links of `path` lead through it, as those of /dev/stdout do; "" for others.
fs::path descriptor_behind(const fs::path& path) {
  constexpr int kMaxLinks = 40;  // as the kernel's
  std::error_code error;
  fs::path place = fs::absolute(path, error);
  for (int i = 0; i < kMaxLinks && !error; ++i) {
    const fs::path folder = fs::canonical(place.parent_path(), error);
    if (error) break;
    if (folder.filename() == "fd" && folder.string().starts_with("/proc/")) return folder / place.filename();
    const fs::path target = fs::read_symlink(place, error);
    place = folder / target;  // `target` itself where that is absolute
  }
  return {};
}

// One of this process is used as it is, so what else is written to it comes before or after, never over it.
int open_stream(const fs::path& path) {
  const fs::path descriptor = descriptor_behind(path);
  if (descriptor.parent_path() == fmt::format("/proc/{}/fd", ::getpid())) {
    std::fflush(stdout);
    const auto number = static_cast<int>(std::strtol(descriptor.filename().c_str(), nullptr, 10));
    return ::fcntl(number, F_DUPFD_CLOEXEC, 0);
  }
  return ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
}

void write_stream(const fs::path& path, std::string_view content) {
  const int fd = open_stream(path);
  if (fd < 0) throw IoError("{}: cannot open: {}", path.string(), errno_text());
  try {
    write_all(fd, content, path);
  } catch (...) {
    ::close(fd);
    throw;
  }
  if (::close(fd) != 0) throw IoError("{}: writing failed: {}", path.string(), errno_text());
}

void rename_path(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw IoError("{}: cannot be moved to {}: {}", from.string(), to.string(), errno_text());
}

// Exchanges two names at once; false where the file system cannot.
bool exchange(const fs::path& a, const fs::path& b) {
  if (::syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE) == 0) return true;
  if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) return false;
  throw IoError("{}: cannot be exchanged with {}: {}", a.string(), b.string(), errno_text());
}

// Puts `fresh` where `target` is; the old one is then gone or lies under the name of `fresh`. A kill leaves one of the two in place, or,
// where the file system has no exchange, both beside it: clear_abandoned puts the old one back.
void replace_directory(const fs::path& fresh, const fs::path& target) {
  const fs::file_status status = fs::symlink_status(target);
  if (!fs::exists(status)) return rename_path(fresh, target);
  if (!fs::is_directory(status)) throw IoError("{}: is no directory, so none is put in its place", target.string());
  if (exchange(fresh, target)) return sync_path(parent_of(target));
  const fs::path old = set_aside_name(target);
  rename_path(target, old);
  try {
    rename_path(fresh, target);
  } catch (...) {
    std::error_code ignored;
    fs::rename(old, target, ignored);
    throw;
  }
  sync_path(parent_of(target));
  std::error_code ignored;
  fs::remove_all(old, ignored);
}

}  // namespace

bool is_stream(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status) || fs::is_directory(status)) return false;
  return !fs::is_regular_file(status) || !descriptor_behind(path).empty();
}

void sync_path(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw IoError("{}: cannot open to sync: {}", path.string(), errno_text());
  const bool is_synced = ::fsync(fd) == 0 || errno == EINVAL;
  const std::string problem = errno_text();
  ::close(fd);
  if (!is_synced) throw IoError("{}: sync failed: {}", path.string(), problem);
}

void write_file_atomic(const fs::path& path, std::string_view content) {
  if (is_stream(path)) return write_stream(path, content);
  const fs::path target = resolved_output(path);
  make_parent(target);
  clear_abandoned(target);
  const TemporaryPath staging(target, TemporaryPath::Kind::file);
  write_all(staging.descriptor(), content, target);
  if (::fsync(staging.descriptor()) != 0) throw IoError("{}: sync failed: {}", target.string(), errno_text());
  rename_path(staging.path(), target);
  sync_path(parent_of(target));
}

void write_directory_atomic(const fs::path& path, const std::function<void(const fs::path& staging)>& fill) {
  const fs::path target = resolved_output(path);
  make_parent(target);
  clear_abandoned(target);
  const TemporaryPath staging(target, TemporaryPath::Kind::directory);
  fill(staging.path());
  for (const auto& entry : fs::recursive_directory_iterator(staging.path())) {
    if (!entry.is_symlink()) sync_path(entry.path());
  }
  sync_path(staging.path());
  replace_directory(staging.path(), target);
  sync_path(parent_of(target));
}

}  // namespace distil_xlstm
