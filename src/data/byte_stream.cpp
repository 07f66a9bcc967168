#include "data/byte_stream.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"

namespace distil_xlstm::data {

namespace {

class PlainStream : public ByteStream {
 public:
  explicit PlainStream(fs::path path) : path_(std::move(path)), file_(std::fopen(path_.c_str(), "rb"), &std::fclose) {
    if (!file_) throw IoError("{}: cannot open: {}", path_.string(), std::strerror(errno));
    std::setvbuf(file_.get(), nullptr, _IONBF, 0);  // callers read in large parts
  }
  size_t read(char* out, size_t size) override {
    const size_t got = std::fread(out, 1, size, file_.get());
    if (got < size && std::ferror(file_.get()) != 0) throw IoError("{}: cannot read: {}", path_.string(), std::strerror(errno));
    bytes_done_ += got;
    return got;
  }
  [[nodiscard]] uint64_t bytes_done() const override { return bytes_done_; }
  [[nodiscard]] const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  uint64_t bytes_done_ = 0;
};

constexpr size_t kInputBytes = 1 << 18;

// What both decompressors share: an input buffer that is filled when it is empty.
class CompressedStream : public ByteStream {
 public:
  explicit CompressedStream(const fs::path& path) : file_(path), input_(kInputBytes) {}
  [[nodiscard]] uint64_t bytes_done() const override { return file_.bytes_done(); }

 protected:
  [[nodiscard]] std::string where() const { return file_.path().string(); }
  // Throws when the file ends inside compressed data.
  bool refill(bool inside) {
    filled_ = file_.read(input_.data(), input_.size());
    if (filled_ == 0 && inside) throw DataError("{}: ends in the middle of its compressed data: the file is cut short", where());
    return filled_ > 0;
  }
  PlainStream file_;
  std::vector<char> input_;
  size_t filled_ = 0;
};

class GzipStream : public CompressedStream {
 public:
  explicit GzipStream(const fs::path& path) : CompressedStream(path) {
    if (inflateInit2(&inflater_, 15 + 16) != Z_OK) throw IoError("{}: cannot start zlib", where());
  }
  ~GzipStream() override { inflateEnd(&inflater_); }
  size_t read(char* out, size_t size) override {
    size = std::min<size_t>(size, std::numeric_limits<uInt>::max());
    inflater_.next_out = reinterpret_cast<Bytef*>(out);
    inflater_.avail_out = static_cast<uInt>(size);
    while (inflater_.avail_out == size) {
      if (inflater_.avail_in == 0) {
        if (!refill(inside_member_ || !seen_any_)) return 0;
        inflater_.next_in = reinterpret_cast<Bytef*>(input_.data());
        inflater_.avail_in = static_cast<uInt>(filled_);
      }
      if (!inside_member_ && seen_any_ && passed_padding()) continue;
      seen_any_ = inside_member_ = true;
      const int status = inflate(&inflater_, Z_NO_FLUSH);
      if (status == Z_STREAM_END) {
        inside_member_ = false;
        inflateReset(&inflater_);
      } else if (status != Z_OK && status != Z_BUF_ERROR) {
        throw DataError("{}: broken gzip data: {}", where(), inflater_.msg != nullptr ? inflater_.msg : "unknown error");
      }
    }
    return size - inflater_.avail_out;
  }

 private:
  // Zero bytes after a member are padding (of a tape, of a block device), as `gzip -d` has it. True when nothing else is left.
  bool passed_padding() {
    for (; inflater_.avail_in > 0 && *inflater_.next_in == 0; ++inflater_.next_in) --inflater_.avail_in;
    return inflater_.avail_in == 0;
  }

  z_stream inflater_{};
  bool inside_member_ = false;
  bool seen_any_ = false;
};

class ZstdStream : public CompressedStream {
 public:
  explicit ZstdStream(const fs::path& path) : CompressedStream(path), stream_(ZSTD_createDStream(), &ZSTD_freeDStream) {
    if (!stream_) throw IoError("{}: cannot start zstd", where());
    ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, ZSTD_dParam_getBounds(ZSTD_d_windowLogMax).upperBound);
  }
  size_t read(char* out, size_t size) override {
    ZSTD_outBuffer output{out, size, 0};
    while (output.pos == 0) {
      // A full output last time may have left decompressed bytes inside zstd: ask for them before more input.
      if (pending_.pos == pending_.size && !maybe_more_) {
        if (!refill(inside_frame_ || !seen_any_)) return 0;
        pending_ = {input_.data(), filled_, 0};
      }
      seen_any_ = true;
      const size_t status = ZSTD_decompressStream(stream_.get(), &output, &pending_);
      if (ZSTD_isError(status) != 0) throw DataError("{}: broken zstd data: {}", where(), ZSTD_getErrorName(status));
      inside_frame_ = status != 0;
      maybe_more_ = inside_frame_ && output.pos == output.size;
    }
    return output.pos;
  }

 private:
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream_;
  ZSTD_inBuffer pending_{nullptr, 0, 0};
  bool inside_frame_ = false;
  bool maybe_more_ = false;
  bool seen_any_ = false;
};

}  // namespace

std::unique_ptr<ByteStream> open_byte_stream(const fs::path& path) {
  std::array<char, 4> magic{};
  PlainStream(path).read(magic.data(), magic.size());
  const std::string_view begin(magic.data(), magic.size());
  // No text in UTF-8 begins like this, so that a name without its ending is no reason to take the bytes for one.
  if (path.extension() == ".gz" || begin.starts_with("\x1F\x8B")) return std::make_unique<GzipStream>(path);
  if (path.extension() == ".zst" || begin == "\x28\xB5\x2F\xFD") return std::make_unique<ZstdStream>(path);
  return std::make_unique<PlainStream>(path);
}

fs::path without_compression(const fs::path& path) {
  const bool compressed = path.extension() == ".gz" || path.extension() == ".zst";
  return compressed ? path.parent_path() / path.stem() : path;
}

LineReader::LineReader(std::unique_ptr<ByteStream> stream, size_t max_bytes, char newline)
    : stream_(std::move(stream)), max_bytes_(max_bytes), newline_(newline) {}

// Reads more behind what is there, moving or growing the buffer when it is full.
bool LineReader::fill() {
  constexpr size_t kReadBytes = 1 << 20;
  if (begin_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  if (buffer_.size() < end_ + kReadBytes) buffer_.resize(std::max(end_ + kReadBytes, buffer_.size() * 2));
  const size_t got = stream_->read(buffer_.data() + end_, buffer_.size() - end_);
  end_ += got;
  at_end_ = got == 0;
  return got > 0;
}

bool LineReader::next(std::string_view& line, bool& too_long) {
  too_long = false;
  size_t searched = 0;  // bytes from begin_ on that hold no newline
  for (;;) {
    const char* from = buffer_.data() + begin_ + searched;
    const auto* newline = static_cast<const char*>(std::memchr(from, newline_, end_ - begin_ - searched));
    if (newline != nullptr) {
      line = {buffer_.data() + begin_, static_cast<size_t>(newline - buffer_.data()) - begin_};
      begin_ += line.size() + 1;
      break;
    }
    searched = end_ - begin_;
    if (searched > max_bytes_) {
      // Only its beginning is kept; what follows overwrites the rest.
      end_ = begin_ + max_bytes_;
      searched = max_bytes_;
      too_long = true;
    }
    if (at_end_ || !fill()) {
      line = {buffer_.data() + begin_, end_ - begin_};
      begin_ = end_;
      if (line.empty() && !too_long) return false;
      break;
    }
  }
  if (line.size() > max_bytes_) {
    line = line.substr(0, max_bytes_);
    too_long = true;
  }
  return true;
}

}  // namespace distil_xlstm::data
