// One file from a URL to the disk: resumable, checked, renamed into place only when right.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "base/file.h"
#include "io/retry.h"

namespace distil_xlstm::io {

struct Download {
  std::string url;
  std::string token;  // for the origin of `url` alone
  fs::path target;
  std::optional<int64_t> size_bytes;  // what is expected, as far as it is known
  std::string sha256;                 // lower-case hexadecimal, or empty
  std::string git_blob_sha1;          // the id that git gives the content; used when sha256 is empty
};

// Continues <target>.incomplete if there is one, else begins it; renames it to `target` once size and checksum are right. An
// interrupted download leaves <target>.incomplete for the next time, a wrong one leaves nothing. `on_progress` gets the bytes that
// are there. Throws HttpError, TransferError (after the last attempt), DataError for wrong content, Interrupted, IoError.
void download_file(const Download& download, const RetryPolicy& retry, const std::function<void(int64_t)>& on_progress);

// What is wrong with the content of a file, or "".
std::string fault_of(const fs::path& path, const Download& download);

// Whether a file has the size and the checksum that `download` expects.
bool is_as_expected(const fs::path& path, const Download& download);

}  // namespace distil_xlstm::io
