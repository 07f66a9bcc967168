#include "train/tensorboard.h"

#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <ctime>

#include "base/error.h"

namespace distil_xlstm::train {
namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82f63b78U : crc >> 1;
    table[i] = crc;
  }
  return table;
}

constexpr auto kCrcTable = make_crc_table();

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

template <typename T>
void put_fixed(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

void put_key(std::string& out, uint32_t field, WireType type) {
  put_varint(out, field << 3 | type);
}

void put_double(std::string& out, uint32_t field, double value) {
  put_key(out, field, kFixed64);
  put_fixed(out, std::bit_cast<uint64_t>(value));
}

void put_float(std::string& out, uint32_t field, float value) {
  put_key(out, field, kFixed32);
  put_fixed(out, std::bit_cast<uint32_t>(value));
}

void put_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  put_key(out, field, kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

std::string event_header(int64_t step) {
  std::string event;
  put_double(event, 1, std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count());
  put_key(event, 2, kVarint);
  put_varint(event, static_cast<uint64_t>(step));
  return event;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffU;
  for (const char byte : bytes) crc = kCrcTable[(crc ^ static_cast<uint8_t>(byte)) & 0xff] ^ (crc >> 8);
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return std::rotr(crc, 15) + 0xa282ead8U;
}

EventWriter::EventWriter(const fs::path& path) : path_(path) {
  std::error_code error;
  const bool is_new = fs::file_size(path, error) == 0 || error;
  stream_.open(path, std::ios::binary | std::ios::app);
  if (!stream_) throw IoError("{}: cannot be opened for writing", path.string());
  if (!is_new) return;
  auto event = event_header(0);
  put_bytes(event, 3, "brain.Event:2");
  write_record(event);
}

void EventWriter::write_scalars(int64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    if (!std::isfinite(value)) continue;
    std::string item;
    put_bytes(item, 1, tag);
    put_float(item, 2, static_cast<float>(value));
    put_bytes(summary, 1, item);
  }
  if (summary.empty()) return;
  auto event = event_header(step);
  put_bytes(event, 5, summary);
  write_record(event);
}

void EventWriter::write_record(const std::string& message) {
  std::string record;
  put_fixed(record, static_cast<uint64_t>(message.size()));
  put_fixed(record, masked_crc32c(record));
  record += message;
  put_fixed(record, masked_crc32c(message));
  stream_.write(record.data(), static_cast<std::streamsize>(record.size()));
  stream_.flush();
  if (!stream_) throw IoError("{}: write failed: is the disk full?", path_.string());
}

std::string event_file_name() {
  return fmt::format("events.out.tfevents.{}.distil-xlstm", std::time(nullptr));
}

}  // namespace distil_xlstm::train
