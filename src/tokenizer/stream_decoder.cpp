#include <algorithm>

#include "tokenizer/tokenizer.h"

namespace distil_xlstm {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
constexpr size_t kMaxHeldIds = 64;  // bounds memory and time for a model that writes bytes of no character for ever

// What `whole` has beyond `shown`, beginning at a character.
std::string beyond(const std::string& whole, const std::string& shown) {
  size_t begin = std::min(shown.size(), whole.size());
  while (begin < whole.size() && (static_cast<unsigned char>(whole[begin]) & 0xC0) == 0x80) ++begin;
  return whole.substr(begin);
}

}  // namespace

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

// A skipped special token, or an id beyond the vocabulary. A space that stands first is not meant: later it is written.
bool StreamDecoder::writes_nothing(int32_t id) const {
  if (tokenizer_.piece(id).empty()) return true;
  return skip_special_tokens_ && tokenizer_.decode({&id, 1}, true).empty() && !tokenizer_.decode({&id, 1}, false).empty();
}

// ids_[prefix_, read_) is already shown and stays as context: decoders treat the first piece of a text differently.
std::string StreamDecoder::push(int32_t id) {
  if (writes_nothing(id)) return "";
  ids_.push_back(id);
  const std::span<const int32_t> ids = ids_;
  const std::string shown = tokenizer_.decode(ids.subspan(prefix_, read_ - prefix_), skip_special_tokens_);
  const std::string whole = tokenizer_.decode(ids.subspan(prefix_), skip_special_tokens_);
  const bool is_partial = whole.ends_with(kReplacement) && ids_.size() - read_ < kMaxHeldIds;
  if (is_partial || whole.size() <= shown.size()) return "";
  ids_.erase(ids_.begin(), ids_.begin() + static_cast<ptrdiff_t>(read_));
  prefix_ = 0;
  read_ = ids_.size();
  return beyond(whole, shown);
}

std::string StreamDecoder::finish() {
  const std::span<const int32_t> ids = ids_;
  const std::string shown = tokenizer_.decode(ids.subspan(prefix_, read_ - prefix_), skip_special_tokens_);
  const std::string whole = tokenizer_.decode(ids.subspan(prefix_), skip_special_tokens_);
  ids_.clear();
  prefix_ = read_ = 0;
  return beyond(whole, shown);
}

}  // namespace distil_xlstm
