#include "base/temporary_path.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <optional>
#include <system_error>

#include "base/error.h"

namespace distil_xlstm {
namespace {

constexpr std::string_view kBeingWritten = ".distil-xlstm-tmp-", kSetAside = ".distil-xlstm-old-";

std::string numbered(const fs::path& target, std::string_view mark) {
  static std::atomic<int> counter = 0;
  return fmt::format("{}{}{}-{}", target.string(), mark, ::getpid(), counter++);
}

// "PID-N" taken apart.
std::optional<pid_t> process_of(std::string_view text) {
  pid_t pid = 0;
  int count = 0;
  const auto [dash, error] = std::from_chars(text.data(), text.data() + text.size(), pid);
  if (error != std::errc() || pid <= 0 || dash == text.data() + text.size() || *dash != '-') return std::nullopt;
  const auto [end, second] = std::from_chars(dash + 1, text.data() + text.size(), count);
  if (second != std::errc() || count < 0 || end != text.data() + text.size()) return std::nullopt;
  return pid;
}

// The process that made `name` for a target called `base` under `mark`.
std::optional<pid_t> maker_of(std::string_view name, std::string_view base, std::string_view mark) {
  if (!name.starts_with(base) || !name.substr(base.size()).starts_with(mark)) return std::nullopt;
  return process_of(name.substr(base.size() + mark.size()));
}

bool is_same_file(int fd, const fs::path& path) {
  struct stat held{}, named{};
  return ::fstat(fd, &held) == 0 && ::lstat(path.c_str(), &named) == 0 && held.st_dev == named.st_dev && held.st_ino == named.st_ino;
}

int open_new(const fs::path& path, TemporaryPath::Kind kind) {
  if (kind == TemporaryPath::Kind::file) return ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (::mkdir(path.c_str(), 0777) != 0) return -1;
  return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

// Calls `remove` while nobody else can take the path, if the process that made it is gone.
template <typename Remove>
void if_abandoned(const fs::path& path, pid_t maker, Remove&& remove) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return;
  bool is_abandoned = ::flock(fd, LOCK_EX | LOCK_NB) == 0;
  // A file system without locks: the process id must do.
  if (!is_abandoned && errno != EWOULDBLOCK) is_abandoned = ::kill(maker, 0) != 0 && errno == ESRCH;
  if (is_abandoned && is_same_file(fd, path)) remove();
  ::close(fd);
}

fs::path parent_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

}  // namespace

TemporaryPath::TemporaryPath(const fs::path& target, Kind kind) {
  for (bool is_mine = false; !is_mine;) {
    path_ = numbered(target, kBeingWritten);
    fd_ = open_new(path_, kind);
    if (fd_ < 0 && errno == EEXIST) continue;  // of a killed process that had our number
    if (fd_ < 0) throw IoError("{}: cannot create: {}", path_.string(), std::strerror(errno));
    // Whoever clears up may have come between the two calls.
    is_mine = (::flock(fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) && is_same_file(fd_, path_);
    if (!is_mine) ::close(fd_);
  }
}

TemporaryPath::~TemporaryPath() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  ::close(fd_);
}

fs::path resolved_output(const fs::path& path) {
  fs::path plain = path;
  while (!plain.has_filename() && plain.has_relative_path()) plain = plain.parent_path();
  const fs::file_status status = fs::symlink_status(plain);
  if (plain.filename() == "." || plain.filename() == ".." || fs::is_symlink(status)) {
    if (fs::exists(plain)) return fs::canonical(plain);
    if (fs::is_symlink(status))
      throw ConfigError("{}: is a link to {}, which is not there: name the place itself", path.string(), fs::read_symlink(plain).string());
  }
  return plain;
}

fs::path set_aside_name(const fs::path& target) {
  fs::path name = numbered(target, kSetAside);
  while (fs::exists(fs::symlink_status(name))) name = numbered(target, kSetAside);
  return name;
}

bool is_temporary_name(std::string_view name) {
  return std::ranges::any_of(std::initializer_list<std::string_view>{kBeingWritten, kSetAside}, [&](std::string_view mark) {
    const size_t at = name.rfind(mark);
    return at != std::string_view::npos && at > 0 && process_of(name.substr(at + mark.size())).has_value();
  });
}

void clear_abandoned(const fs::path& target) {
  const std::string base = target.filename().string();
  std::error_code error;
  std::vector<fs::path> names;
  for (auto it = fs::directory_iterator(parent_of(target), error); !error && it != fs::directory_iterator(); it.increment(error)) {
    names.push_back(it->path());
  }
  for (const fs::path& path : names) {
    const auto maker = maker_of(path.filename().string(), base, kSetAside);
    if (!maker) continue;
    if_abandoned(path, *maker, [&] {
      if (fs::exists(fs::symlink_status(target))) {
        fs::remove_all(path, error);
      } else {
        fs::rename(path, target, error);
      }
    });
  }
  for (const fs::path& path : names) {
    const auto maker = maker_of(path.filename().string(), base, kBeingWritten);
    if (maker) if_abandoned(path, *maker, [&] { fs::remove_all(path, error); });
  }
}

}  // namespace distil_xlstm
