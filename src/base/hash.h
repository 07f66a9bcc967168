// Checksums (XXH3) and digests (SHA-256, SHA-1).
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

// Incremental digest of libcrypto, lower-case hexadecimal.
class Digest {
 public:
  void update(std::span<const std::byte> bytes);
  [[nodiscard]] std::string hex_digest();  // ends the stream

 protected:
  enum class Algorithm { sha1, sha256 };
  explicit Digest(Algorithm algorithm);
  ~Digest();
  Digest(const Digest&) = delete;
  Digest& operator=(const Digest&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

class Sha256 : public Digest {
 public:
  Sha256() : Digest(Algorithm::sha256) {}
};

// For the ids of git objects, which are SHA-1; no protection against forgery.
class Sha1 : public Digest {
 public:
  Sha1() : Digest(Algorithm::sha1) {}
};

}  // namespace distil_xlstm
