// A file's bytes in order, decompressed on the way (.gz, .zst), in bounded memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/file.h"

namespace distil_xlstm::data {

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // Fills up to `size` bytes; 0 only at the end. Throws IoError, or DataError for broken or cut compression.
  virtual size_t read(char* out, size_t size) = 0;
  // Bytes taken from the file itself, for progress.
  [[nodiscard]] virtual uint64_t bytes_done() const = 0;
};

// By the name's ending or the first bytes: gzip (any number of members), zstd (any number of frames, windows up to 2^31), else as it is.
std::unique_ptr<ByteStream> open_byte_stream(const fs::path& path);

// The name without .gz or .zst.
fs::path without_compression(const fs::path& path);

// Lines of a stream. A line longer than `max_bytes` is given as its first max_bytes with `too_long` set; the rest is passed over.
class LineReader {
 public:
  LineReader(std::unique_ptr<ByteStream> stream, size_t max_bytes, char newline = '\n');
  bool next(std::string_view& line, bool& too_long);  // without its newline; valid until the next call
  [[nodiscard]] uint64_t bytes_done() const { return stream_->bytes_done(); }

 private:
  bool fill();
  std::unique_ptr<ByteStream> stream_;
  size_t max_bytes_;
  char newline_;
  std::string buffer_;
  size_t begin_ = 0;  // of what is not yet given
  size_t end_ = 0;    // of what is read
  bool at_end_ = false;
};

}  // namespace distil_xlstm::data
