// Owners for what the Rust library hands out.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/rust/dx_tokenizers.h"

namespace distil_xlstm::rust {

inline DxText text(std::string_view view) {
  return {view.data(), view.size()};
}

// A text that the library fills.
class String {
 public:
  String() = default;
  ~String() { dx_string_free(string_); }
  String(const String&) = delete;
  String& operator=(const String&) = delete;
  DxString* out() { return &string_; }
  [[nodiscard]] std::string str() const { return {string_.data, string_.size}; }

 private:
  DxString string_{nullptr, 0};
};

class Error : private String {
 public:
  using String::out;
  [[nodiscard]] std::string message() const { return str(); }
};

class Encodings {
 public:
  Encodings() = default;
  ~Encodings() { dx_encodings_free(encodings_); }
  Encodings(const Encodings&) = delete;
  Encodings& operator=(const Encodings&) = delete;
  DxEncodings* out() { return &encodings_; }
  [[nodiscard]] std::vector<int32_t> of(size_t index) const {
    const size_t begin = index == 0 ? 0 : encodings_.ends[index - 1];
    return {encodings_.ids + begin, encodings_.ids + encodings_.ends[index]};
  }

 private:
  DxEncodings encodings_{nullptr, 0, nullptr, 0};
};

class Ranges {
 public:
  Ranges() = default;
  ~Ranges() { dx_ranges_free(ranges_); }
  Ranges(const Ranges&) = delete;
  Ranges& operator=(const Ranges&) = delete;
  DxRanges* out() { return &ranges_; }
  [[nodiscard]] size_t size() const { return ranges_.num_bounds / 2; }
  std::pair<size_t, size_t> operator[](size_t index) const { return {ranges_.bounds[2 * index], ranges_.bounds[2 * index + 1]}; }

 private:
  DxRanges ranges_{nullptr, 0};
};

// A handle with its function that frees it.
template <typename T, void (*kFree)(T*)>
class Handle {
 public:
  Handle() = default;
  ~Handle() { kFree(handle_); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  T** out() { return &handle_; }
  [[nodiscard]] T* get() const { return handle_; }

 private:
  T* handle_ = nullptr;
};

using TokenizerHandle = Handle<DxTokenizer, dx_tokenizer_free>;
using TemplateHandle = Handle<DxTemplate, dx_template_free>;

}  // namespace distil_xlstm::rust
