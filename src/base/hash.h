// Checksums (XXH3) and digests (SHA-256).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace distil_xlstm {

uint64_t xxh3_64(std::span<const std::byte> bytes);
std::string xxh3_128_hex(std::string_view bytes);

// Incremental XXH3-64 of a stream.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(const Xxh3Stream&) = delete;
  Xxh3Stream& operator=(const Xxh3Stream&) = delete;
  void update(std::span<const std::byte> bytes);
  [[nodiscard]] uint64_t digest() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Incremental SHA-256, lower-case hexadecimal.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void update(std::span<const std::byte> bytes);
  [[nodiscard]] std::string hex_digest();  // ends the stream

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace distil_xlstm
