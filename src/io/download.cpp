#include "io/download.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "base/hash.h"
#include "base/log.h"
#include "base/signals.h"
#include "io/http.h"

namespace distil_xlstm::io {

namespace {

constexpr int64_t kProgressBytes = 1 << 20;  // a try that brings this much is no failure

// The unfinished file, locked so that two programs do not write it at once.
class PartialFile {
 public:
  explicit PartialFile(fs::path path) : path_(std::move(path)), fd_(::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
    if (fd_ < 0) throw IoError("{}: cannot create: {}", path_.string(), std::strerror(errno));
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {  // a file system without locks has to do without
      ::close(fd_);
      throw IoError("{}: another program is downloading this file: wait for it", path_.string());
    }
    size_ = ::lseek(fd_, 0, SEEK_END);
  }
  ~PartialFile() { ::close(fd_); }
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  [[nodiscard]] const fs::path& path() const { return path_; }
  [[nodiscard]] int64_t size() const { return size_; }

  void append(std::string_view part) {
    while (!part.empty()) {
      const ssize_t written = ::pwrite(fd_, part.data(), part.size(), size_);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) throw IoError("{}: writing failed after {} bytes: {}", path_.string(), size_, std::strerror(errno));
      size_ += written;
      part.remove_prefix(static_cast<size_t>(written));
    }
  }

  void clear() {
    if (::ftruncate(fd_, 0) != 0) throw IoError("{}: cannot be emptied: {}", path_.string(), std::strerror(errno));
    size_ = 0;
  }

  void remove() const { fs::remove(path_); }

  void move_to(const fs::path& target) const {
    if (::fsync(fd_) != 0) throw IoError("{}: sync failed: {}", path_.string(), std::strerror(errno));
    fs::rename(path_, target);
    sync_path(target.parent_path());
  }

 private:
  fs::path path_;
  int fd_;
  int64_t size_ = 0;
};

std::optional<int64_t> number_of(std::string_view text) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size() || number < 0) return std::nullopt;
  return number;
}

std::string header(const HttpResponse& response, const std::string& name) {
  const auto it = response.headers.find(name);
  return it == response.headers.end() ? "" : it->second;
}

// "bytes 100-199/200" -> 100
std::optional<int64_t> range_begin(const std::string& content_range) {
  constexpr std::string_view kUnit = "bytes ";
  if (!content_range.starts_with(kUnit)) return std::nullopt;
  return number_of(std::string_view(content_range).substr(kUnit.size(), content_range.find('-') - kUnit.size()));
}

std::string checksum(const fs::path& path, Digest& digest) {
  constexpr size_t kPart = size_t{16} << 20;
  const MappedFile file(path);
  for (size_t begin = 0; begin < file.bytes().size(); begin += kPart) {
    throw_if_interrupted();
    digest.update(file.bytes().subspan(begin, std::min(kPart, file.bytes().size() - begin)));
  }
  return digest.hex_digest();
}

// One request for what is missing. Throws TransferError when it ends early.
void transfer(const Download& download, PartialFile& file, const std::function<void(int64_t)>& on_progress) {
  HttpRequest request{.url = download.url, .token = download.token};
  if (file.size() > 0) request.headers.push_back(fmt::format("Range: bytes={}-", file.size()));
  const auto on_begin = [&](const HttpResponse& response) {
    if (response.status == 200) {
      file.clear();  // the server begins anew
    } else if (range_begin(header(response, "content-range")) != file.size()) {
      file.clear();
      throw TransferError(response.url, "the server sends another part than was asked for");
    }
    const auto length = number_of(header(response, "content-length"));
    if (length && download.size_bytes && file.size() + *length != *download.size_bytes) {
      throw DataError("{}: the server has {} bytes, {} are expected", shown_url(download.url), file.size() + *length, *download.size_bytes);
    }
  };
  const auto on_body = [&](std::string_view part) {
    file.append(part);
    if (download.size_bytes && file.size() > *download.size_bytes) {
      throw DataError("{}: the server sends more than the {} bytes that are expected", shown_url(download.url), *download.size_bytes);
    }
    on_progress(file.size());
  };
  try {
    http_get(request, on_begin, on_body);
  } catch (const HttpError& error) {
    if (error.status() != 416 || file.size() == 0) throw;
    file.clear();  // our part is longer than the server's file
    throw TransferError(download.url, "the server cannot continue the download");
  }
  if (download.size_bytes && file.size() < *download.size_bytes) {
    throw TransferError(download.url, fmt::format("it ended after {} of {} bytes", file.size(), *download.size_bytes));
  }
}

// Transfers until all is there.
void complete(const Download& download, const RetryPolicy& policy, PartialFile& file, const std::function<void(int64_t)>& on_progress) {
  if (download.size_bytes && file.size() > *download.size_bytes) file.clear();
  Retries retries(policy);
  while (!download.size_bytes || file.size() < *download.size_bytes) {
    const int64_t before = file.size();
    try {
      transfer(download, file, on_progress);
      return;
    } catch (const HttpError& error) {
      retries.failed(error);
    } catch (const TransferError& error) {
      if (file.size() - before >= kProgressBytes) retries.progressed();
      retries.failed(error);
    }
  }
}

}  // namespace

std::string fault_of(const fs::path& path, const Download& download) {
  const auto size = static_cast<int64_t>(fs::file_size(path));
  if (download.size_bytes && size != *download.size_bytes)
    return fmt::format("it has {} bytes, {} are expected", size, *download.size_bytes);
  std::string found, expected = download.sha256;
  if (!expected.empty()) {
    Sha256 digest;
    found = checksum(path, digest);
  } else if (!download.git_blob_sha1.empty()) {
    expected = download.git_blob_sha1;
    Sha1 digest;
    const std::string git_header = fmt::format("blob {}", size);
    digest.update(std::as_bytes(std::span(git_header.c_str(), git_header.size() + 1)));  // with its final zero
    found = checksum(path, digest);
  }
  if (found == expected) return "";
  return fmt::format("its {} is {}, {} is expected", download.sha256.empty() ? "git id" : "sha256", found, expected);
}

bool is_as_expected(const fs::path& path, const Download& download) {
  return fs::is_regular_file(path) && fault_of(path, download).empty();
}

void download_file(const Download& download, const RetryPolicy& retry, const std::function<void(int64_t)>& on_progress) {
  fs::create_directories(download.target.parent_path());
  PartialFile file(download.target.string() + ".incomplete");
  bool is_continued = file.size() > 0;
  while (true) {
    try {
      complete(download, retry, file, on_progress);
    } catch (const DataError&) {
      file.remove();
      throw;
    }
    const std::string fault = fault_of(file.path(), download);
    if (fault.empty()) break;
    if (!is_continued) {
      file.remove();
      throw DataError("{}: the download is corrupt: {}; it was deleted: try again", shown_url(download.url), fault);
    }
    spdlog::warn("{}: what an earlier download left does not fit ({}); beginning anew", shown_url(download.url), fault);
    file.clear();
    is_continued = false;
  }
  file.move_to(download.target);
}

}  // namespace distil_xlstm::io
