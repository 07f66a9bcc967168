#include "io/zip.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <memory>
#include <span>
#include <vector>

#include "base/error.h"

namespace distil_xlstm::io {

namespace {

// The format is APPNOTE.TXT of PKWARE: the end record points to the central directory, whose entries point to the local headers.
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEntrySignature = 0x02014b50;
constexpr uint32_t kLocalSignature = 0x04034b50;
constexpr size_t kEndSize = 22, kEntrySize = 46, kLocalSize = 30;
constexpr size_t kMaxComment = 0xFFFF;
constexpr uint32_t kNeedsZip64 = 0xFFFFFFFF;
constexpr uint16_t kStored = 0, kDeflated = 8;

struct Entry {
  uint16_t flags = 0, method = 0;
  uint32_t crc = 0, compressed_size = 0, size = 0, local_offset = 0;
};

// Bounds-checked little-endian reading of the mapped archive.
class Archive {
 public:
  explicit Archive(const fs::path& path) : file_(path) {}

  [[nodiscard]] std::span<const std::byte> part(uint64_t offset, uint64_t size) const {
    const std::span<const std::byte> bytes = file_.bytes();
    if (offset > bytes.size() || size > bytes.size() - offset) fail("it is cut off");
    return bytes.subspan(offset, size);
  }

  [[nodiscard]] uint32_t number(uint64_t offset, size_t width) const {
    uint32_t value = 0;
    const auto bytes = part(offset, width);
    for (size_t i = 0; i < width; ++i) value |= static_cast<uint32_t>(bytes[i]) << (8 * i);
    return value;
  }

  [[nodiscard]] std::string_view text(uint64_t offset, size_t size) const {
    return {reinterpret_cast<const char*>(part(offset, size).data()), size};
  }

  [[noreturn]] void fail(std::string_view what) const { throw DataError("{}: not a usable zip archive: {}", file_.path().string(), what); }
  [[nodiscard]] size_t size() const { return file_.bytes().size(); }

 private:
  MappedFile file_;
};

uint64_t find_end_record(const Archive& archive) {
  if (archive.size() < kEndSize) archive.fail("it is cut off");
  const uint64_t last = archive.size() - kEndSize;
  const uint64_t first = last > kMaxComment ? last - kMaxComment : 0;
  for (uint64_t at = last;; --at) {
    if (archive.number(at, 4) == kEndSignature && at + kEndSize + archive.number(at + 20, 2) == archive.size()) return at;
    if (at == first) archive.fail("its directory is missing");
  }
}

Entry find_entry(const Archive& archive, std::string_view member) {
  const uint64_t end = find_end_record(archive);
  const uint32_t count = archive.number(end + 10, 2);
  uint64_t at = archive.number(end + 16, 4);
  for (uint32_t i = 0; i < count; ++i) {
    if (archive.number(at, 4) != kEntrySignature) archive.fail("its directory is broken");
    const uint32_t name_size = archive.number(at + 28, 2);
    if (archive.text(at + kEntrySize, name_size) == member) {
      return {.flags = static_cast<uint16_t>(archive.number(at + 8, 2)),
              .method = static_cast<uint16_t>(archive.number(at + 10, 2)),
              .crc = archive.number(at + 16, 4),
              .compressed_size = archive.number(at + 20, 4),
              .size = archive.number(at + 24, 4),
              .local_offset = archive.number(at + 42, 4)};
    }
    at += kEntrySize + name_size + archive.number(at + 30, 2) + archive.number(at + 32, 2);
  }
  archive.fail(fmt::format("it has no '{}'", member));
}

std::span<const std::byte> compressed_bytes(const Archive& archive, const Entry& entry) {
  if ((entry.flags & 1) != 0) archive.fail("it is encrypted");
  if (entry.compressed_size == kNeedsZip64 || entry.size == kNeedsZip64 || entry.local_offset == kNeedsZip64)
    archive.fail("it is of the zip64 kind");
  if (archive.number(entry.local_offset, 4) != kLocalSignature) archive.fail("a header is broken");
  const uint64_t names = uint64_t{archive.number(entry.local_offset + 26, 2)} + archive.number(entry.local_offset + 28, 2);
  return archive.part(entry.local_offset + kLocalSize + names, entry.compressed_size);
}

// The member's file, with its size and CRC counted.
class Output {
 public:
  explicit Output(const fs::path& path) : path_(path), stream_(path, std::ios::binary | std::ios::trunc) {
    if (!stream_) throw IoError("{}: cannot create", path_.string());
  }
  void write(std::span<const std::byte> bytes) {
    stream_.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!stream_) throw IoError("{}: writing failed after {} bytes: is the disk full?", path_.string(), size_);
    crc_ = ::crc32(crc_, reinterpret_cast<const Bytef*>(bytes.data()), static_cast<uInt>(bytes.size()));
    size_ += bytes.size();
  }
  void finish() {
    stream_.close();
    if (!stream_) throw IoError("{}: writing failed: is the disk full?", path_.string());
  }
  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] uint32_t crc() const { return static_cast<uint32_t>(crc_); }

 private:
  fs::path path_;
  std::ofstream stream_;
  uint64_t size_ = 0;
  uLong crc_ = ::crc32(0, nullptr, 0);
};

constexpr size_t kPart = size_t{1} << 20;

void copy_stored(std::span<const std::byte> bytes, Output& output) {
  for (size_t begin = 0; begin < bytes.size(); begin += kPart) output.write(bytes.subspan(begin, std::min(kPart, bytes.size() - begin)));
}

void inflate_all(const Archive& archive, std::span<const std::byte> bytes, uint64_t size, Output& output) {
  z_stream stream{};
  if (::inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw IoError("zlib cannot be started");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> owner(&stream, ::inflateEnd);
  std::vector<std::byte> part(kPart);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  for (int status = Z_OK; status != Z_STREAM_END;) {
    stream.next_out = reinterpret_cast<Bytef*>(part.data());
    stream.avail_out = static_cast<uInt>(part.size());
    status = ::inflate(&stream, Z_NO_FLUSH);
    if (status != Z_OK && status != Z_STREAM_END) archive.fail("its compressed data are broken");
    output.write(std::span(part).first(part.size() - stream.avail_out));
    if (output.size() > size) archive.fail("a member is longer than it says");
  }
}

}  // namespace

void extract_zip_member(const fs::path& archive_path, std::string_view member, const fs::path& target) {
  const Archive archive(archive_path);
  const Entry entry = find_entry(archive, member);
  const std::span<const std::byte> bytes = compressed_bytes(archive, entry);
  try {
    Output output(target);
    if (entry.method == kStored) {
      copy_stored(bytes, output);
    } else if (entry.method == kDeflated) {
      inflate_all(archive, bytes, entry.size, output);
    } else {
      archive.fail(fmt::format("'{}' is compressed by method {}, which is not known here", member, entry.method));
    }
    output.finish();
    if (output.size() != entry.size || output.crc() != entry.crc)
      archive.fail(fmt::format("'{}' does not have the size and CRC that it says", member));
  } catch (...) {
    std::error_code ignored;
    fs::remove(target, ignored);
    throw;
  }
}

}  // namespace distil_xlstm::io
