#include "base/file.h"

#include <fcntl.h>
#include <fnmatch.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <set>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/mapping_guard.h"

namespace distil_xlstm {
namespace {

std::string errno_text() {
  return std::error_code(errno, std::generic_category()).message();
}

// Closes on scope exit.
struct FileDescriptor {
  int fd = -1;
  explicit FileDescriptor(int descriptor) : fd(descriptor) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (fd >= 0) ::close(fd);
  }
};

bool is_hidden(const fs::path& path) {
  return path.filename().string().starts_with('.');
}

// Entries of a directory; none where it cannot be read, as shells do.
std::vector<fs::directory_entry> entries_of(const fs::path& directory) {
  std::error_code ignored;
  std::vector<fs::directory_entry> entries;
  for (auto it = fs::directory_iterator(directory.empty() ? fs::path(".") : directory, ignored); it != fs::directory_iterator();
       it.increment(ignored)) {
    entries.push_back(*it);
  }
  return entries;
}

using PatternParts = std::span<const std::string>;

// Adds what the parts of a pattern match below `base`.
void match_parts(const fs::path& base, PatternParts parts, std::vector<fs::path>& found) {
  std::error_code ignored;
  if (parts.empty()) {
    found.push_back(base);
    return;
  }
  const std::string& part = parts.front();
  if (part == "**") {
    if (parts.size() > 1) match_parts(base, parts.subspan(1), found);
    for (const fs::directory_entry& entry : entries_of(base)) {
      if (is_hidden(entry.path())) continue;
      const fs::path path = base / entry.path().filename();
      if (entry.is_directory(ignored) && !entry.is_symlink(ignored)) {  // links may lead in circles
        match_parts(path, parts, found);
      } else if (parts.size() == 1) {
        found.push_back(path);
      }
    }
    return;
  }
  // A name that is there as it is written needs no matching, even with brackets in it.
  if (fs::exists(base / part, ignored)) match_parts(base / part, parts.subspan(1), found);
  if (part.find_first_of("*?[\\") == std::string::npos) return;
  for (const fs::directory_entry& entry : entries_of(base)) {
    const std::string name = entry.path().filename().string();
    if (name != part && ::fnmatch(part.c_str(), name.c_str(), FNM_PERIOD) == 0) match_parts(base / name, parts.subspan(1), found);
  }
}

// Matches of one glob, sorted; `**` goes through any number of directories.
std::vector<fs::path> glob_paths(const std::string& pattern) {
  std::vector<std::string> parts;
  const fs::path path(pattern);
  for (const fs::path& part : path.relative_path()) {
    if (!part.empty()) parts.push_back(part.string());
  }
  std::vector<fs::path> found;
  if (!parts.empty()) match_parts(path.root_path(), parts, found);
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

}  // namespace

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a named pipe would wait for its writer
  if (file.fd < 0) throw IoError("{}: cannot open: {}", path.string(), errno_text());
  struct stat info{};
  if (::fstat(file.fd, &info) != 0) throw IoError("{}: cannot read its size: {}", path.string(), errno_text());
  if (!S_ISREG(info.st_mode))
    throw IoError("{}: not a regular file but {}", path.string(), S_ISDIR(info.st_mode) ? "a directory" : "a pipe or a device");
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) return;
  void* memory = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (memory == MAP_FAILED) throw IoError("{}: cannot map {} bytes: {}", path.string(), size_, errno_text());
  data_ = static_cast<const std::byte*>(memory);
  guard_mapping(data_, size_, path);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  if (this != &other) {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  release_mapping(data_);
  ::munmap(const_cast<std::byte*>(data_), size_);
}

std::string read_file(const fs::path& path) {
  if (fs::is_directory(path)) throw IoError("{}: is a directory, a file is needed", path.string());
  std::ifstream stream(path, std::ios::binary);  // a named pipe waits for its writer, as everywhere
  if (!stream) throw IoError("{}: cannot open: {}", path.string(), errno_text());
  std::string content((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (stream.bad()) throw IoError("{}: reading failed: {}", path.string(), errno_text());
  return content;
}

std::vector<fs::path> expand_paths(const std::vector<std::string>& arguments) {
  std::vector<fs::path> paths;
  for (const auto& argument : arguments) {
    const size_t before = paths.size();
    if (fs::is_directory(argument)) {
      for (const auto& entry : fs::recursive_directory_iterator(argument)) {
        if (entry.is_regular_file()) paths.push_back(entry.path());
      }
      std::sort(paths.begin() + static_cast<std::ptrdiff_t>(before), paths.end());
    } else if (fs::exists(argument)) {
      paths.emplace_back(argument);
    } else {
      for (auto& path : glob_paths(argument)) {
        if (fs::is_regular_file(path)) paths.push_back(std::move(path));
      }
    }
    if (paths.size() == before) throw IoError("{}: no such file, directory with files, or glob that matches any", argument);
  }
  std::set<fs::path> seen;
  std::erase_if(paths, [&](const fs::path& path) {
    std::error_code error;  // a pipe's name leads nowhere
    const fs::path canonical = fs::canonical(path, error);
    return !seen.insert(error ? path : canonical).second;
  });
  return paths;
}

fs::path cache_directory() {
  if (const char* own = std::getenv("DISTIL_XLSTM_CACHE"); own != nullptr && *own != '\0') return own;
  if (const char* hub = std::getenv("HF_HOME"); hub != nullptr && *hub != '\0') return fs::path(hub) / "distil-xlstm";
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg != '\0') return fs::path(xdg) / "distil-xlstm";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') return fs::path(home) / ".cache" / "distil-xlstm";
  throw IoError("cannot tell where to keep downloads: none of DISTIL_XLSTM_CACHE, HF_HOME, XDG_CACHE_HOME and HOME is set");
}

fs::path share_directory() {
  if (const char* own = std::getenv("DISTIL_XLSTM_SHARE"); own != nullptr && *own != '\0') return own;
  std::error_code error;
  const fs::path executable = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    for (fs::path folder = executable.parent_path(); folder.has_relative_path(); folder = folder.parent_path()) {
      for (const char* name : {"share/distil-xlstm", "share"}) {
        if (fs::exists(folder / name / "models")) return folder / name;
      }
    }
  }
  throw IoError("the files that travel with the program (share/) were not found near {}: set DISTIL_XLSTM_SHARE", executable.string());
}

}  // namespace distil_xlstm
