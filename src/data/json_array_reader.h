// Elements of one JSON array that fills a file, as texts, in bounded memory. Where they end is found by brackets and quotes alone;
// whether they are JSON is for their reader to say.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "data/byte_stream.h"

namespace distil_xlstm::data {

class JsonArrayReader {
 public:
  // An element longer than `max_bytes` is given as its first max_bytes with `too_long` set.
  JsonArrayReader(std::unique_ptr<ByteStream> stream, size_t max_bytes);
  // Also gives what stands behind the array, if anything does. The text is valid until the next call.
  bool next(std::string_view& element, bool& too_long);
  [[nodiscard]] bool is_cut() const { return at_end_ && place_ != Place::after; }  // the file ended before the array
  [[nodiscard]] uint64_t bytes_done() const { return stream_->bytes_done(); }

 private:
  enum class Place { before, inside, after };  // of the array's brackets

  bool get(char& c);
  bool ends_element(char c);
  [[nodiscard]] bool has_text() const { return element_.find_first_not_of(" \t\r\n") != std::string::npos; }

  std::unique_ptr<ByteStream> stream_;
  size_t max_bytes_;
  std::string buffer_;
  size_t begin_ = 0, end_ = 0;  // of what is read and not yet looked at
  std::string element_;
  Place place_ = Place::before;
  int64_t depth_ = 0;  // brackets open in the element
  bool in_string_ = false, is_escaped_ = false;
  bool at_end_ = false;
};

}  // namespace distil_xlstm::data
