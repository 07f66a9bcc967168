// Builds GGUF files byte by byte, right and wrong ones.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace distil_xlstm::io {

class GgufBuilder {
 public:
  static std::string u32(uint32_t value) { return raw(value); }
  static std::string u64(uint64_t value) { return raw(value); }
  static std::string text(std::string_view value) { return u64(value.size()) + std::string(value); }

  template <typename T>
  static std::string raw(T value) {
    std::string bytes(sizeof value, '\0');
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
  }

  // A key with type number and the bytes of its value.
  GgufBuilder& pair(std::string_view key, uint32_t type, const std::string& value) {
    pairs_.push_back(text(key) + u32(type) + value);
    return *this;
  }
  GgufBuilder& size(std::string_view key, uint32_t value) { return pair(key, 4, u32(value)); }
  GgufBuilder& number(std::string_view key, float value) { return pair(key, 6, raw(value)); }
  GgufBuilder& flag(std::string_view key, bool value) { return pair(key, 7, raw<uint8_t>(value ? 1 : 0)); }
  GgufBuilder& string(std::string_view key, std::string_view value) { return pair(key, 8, text(value)); }
  GgufBuilder& strings(std::string_view key, const std::vector<std::string>& values) {
    std::string bytes = u32(8) + u64(values.size());
    for (const std::string& value : values) bytes += text(value);
    return pair(key, 9, bytes);
  }
  GgufBuilder& integers(std::string_view key, const std::vector<int32_t>& values) {
    std::string bytes = u32(5) + u64(values.size());
    for (const int32_t value : values) bytes += raw(value);
    return pair(key, 9, bytes);
  }
  GgufBuilder& floats(std::string_view key, const std::vector<float>& values) {
    std::string bytes = u32(6) + u64(values.size());
    for (const float value : values) bytes += raw(value);
    return pair(key, 9, bytes);
  }

  // Dimensions as GGUF has them, fastest first; zeros as data.
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dimensions, uint32_t type, size_t size_bytes) {
    return tensor(name, dimensions, type, std::string(size_bytes, '\0'), data_.size());
  }
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dimensions, uint32_t type, const std::string& data,
                      uint64_t offset) {
    std::string entry = text(name) + u32(static_cast<uint32_t>(dimensions.size()));
    for (const uint64_t dimension : dimensions) entry += u64(dimension);
    tensors_.push_back(entry + u32(type) + u64(offset));
    data_ += data;
    data_.resize((data_.size() + 31) / 32 * 32, '\0');
    return *this;
  }

  [[nodiscard]] std::string build(uint32_t version = 3) const {
    std::string file = "GGUF" + u32(version) + u64(tensors_.size()) + u64(pairs_.size());
    for (const std::string& pair : pairs_) file += pair;
    for (const std::string& tensor : tensors_) file += tensor;
    file.resize((file.size() + 31) / 32 * 32, '\0');
    return file + data_;
  }

 private:
  std::vector<std::string> pairs_, tensors_;
  std::string data_;
};

// Metadata and tensors of a one-layer llama, which the caller adds to: hidden 4, two heads, four tokens.
inline GgufBuilder tiny_llama() {
  GgufBuilder builder;
  builder.string("general.architecture", "llama")
      .size("llama.block_count", 1)
      .size("llama.context_length", 16)
      .size("llama.embedding_length", 4);
  builder.size("llama.feed_forward_length", 8)
      .size("llama.attention.head_count", 2)
      .number("llama.attention.layer_norm_rms_epsilon", 1e-5F);
  builder.tensor("token_embd.weight", {4, 4}, 0, 64);
  return builder;
}

}  // namespace distil_xlstm::io
