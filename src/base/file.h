// Files: read, map, and replace whole (nothing is ever half-written).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace distil_xlstm {

namespace fs = std::filesystem;

// A file mapped read-only into memory; movable. Throws IoError.
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const fs::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  [[nodiscard]] const fs::path& path() const noexcept { return path_; }

 private:
  fs::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole file as a string. Throws IoError that names the path.
std::string read_file(const fs::path& path);

// Writes beside the target, syncs, renames: readers see the old content or the new one, never a part.
void write_file_atomic(const fs::path& path, std::string_view content);

// Builds a directory beside `target` (its name is given to `fill`), syncs every file in it, then renames it into place.
// An existing `target` is replaced only after the new one is complete. If `fill` throws, nothing is left behind.
void write_directory_atomic(const fs::path& target, const std::function<void(const fs::path& staging)>& fill);

// fsync of one file or directory. Throws IoError.
void sync_path(const fs::path& path);

// Expands each argument: a file stays, a directory gives its regular files (sorted, recursive), a glob (*, ?, [], ** for any number
// of directories) its matches (sorted; names with a leading dot only where the pattern has the dot). A file that is reached twice
// is given once. Throws IoError for an argument that matches nothing.
std::vector<fs::path> expand_paths(const std::vector<std::string>& arguments);

// Where downloads live: $DISTIL_XLSTM_CACHE, else distil-xlstm in $HF_HOME, in $XDG_CACHE_HOME or in ~/.cache.
fs::path cache_directory();

// Folder with the files that travel with the program (demo data, report assets): $DISTIL_XLSTM_SHARE, else share/ beside or
// above the executable, else the source tree it was built from.
fs::path share_directory();

}  // namespace distil_xlstm
