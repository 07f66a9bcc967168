#include "data/json_array_reader.h"

namespace distil_xlstm::data {

JsonArrayReader::JsonArrayReader(std::unique_ptr<ByteStream> stream, size_t max_bytes)
    : stream_(std::move(stream)), max_bytes_(max_bytes), buffer_(size_t{1} << 16, 0) {}

bool JsonArrayReader::get(char& c) {
  if (begin_ == end_ && !at_end_) {
    begin_ = 0;
    end_ = stream_->read(buffer_.data(), buffer_.size());
    at_end_ = end_ == 0;
  }
  if (at_end_) return false;
  c = buffer_[begin_++];
  return true;
}

// Whether `c`, inside the array, stands behind an element; else it is part of one.
bool JsonArrayReader::ends_element(char c) {
  if (in_string_) {
    if (!is_escaped_ && c == '"') in_string_ = false;
    is_escaped_ = !is_escaped_ && c == '\\';
    return false;
  }
  if (depth_ == 0 && (c == ',' || c == ']')) return true;
  in_string_ = c == '"';
  if (c == '[' || c == '{') ++depth_;
  if (depth_ > 0 && (c == ']' || c == '}')) --depth_;
  return false;
}

bool JsonArrayReader::next(std::string_view& element, bool& too_long) {
  element_.clear();
  too_long = false;
  for (char c = 0; get(c);) {
    if (place_ == Place::before) {
      if (c == '[') place_ = Place::inside;
      continue;
    }
    if (place_ == Place::inside && ends_element(c)) {
      if (c == ']') place_ = Place::after;
      if (has_text()) break;
      continue;
    }
    if (element_.size() < max_bytes_) {
      element_ += c;
    } else {
      too_long = true;
    }
  }
  element = element_;
  return has_text();
}

}  // namespace distil_xlstm::data
