// Hugging Face `tokenizers` itself (its Rust crate behind the C interface in rust/).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "io/model_files.h"

namespace distil_xlstm {

// Bytes of a text that an id stands for.
struct TextRange {
  size_t begin = 0, end = 0;
};

struct EncodedText {
  std::vector<int32_t> ids;
  std::vector<TextRange> ranges;  // one for each
};

// Immutable, shared between threads. Token ids are what the Python package gives for the same tokenizer.json with files.added_tokens.
class Tokenizer {
 public:
  // Throws DataError that names files.origin when the JSON is not a tokenizer. Warns where an added token gets another id than its file
  // says: the next one that is free, as in `transformers`.
  explicit Tokenizer(const io::TokenizerFiles& files);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // Ids of `text`, without special tokens unless `add_special_tokens` (then as the post-processor says). Special tokens
  // written in the text become their ids when `parse_special`, plain text otherwise.
  [[nodiscard]] std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = false, bool parse_special = true) const;
  // The same for many texts on all cores (RAYON_NUM_THREADS is honoured).
  [[nodiscard]] std::vector<std::vector<int32_t>> encode_batch(std::span<const std::string_view> texts,
                                                               bool add_special_tokens = false) const;
  // Without special tokens added, and with the place of each id.
  [[nodiscard]] std::vector<EncodedText> encode_ranges(std::span<const std::string_view> texts) const;
  [[nodiscard]] std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  [[nodiscard]] int64_t vocab_size() const;  // greatest id + 1, added tokens included
  [[nodiscard]] std::optional<int32_t> token_id(std::string_view piece) const;
  [[nodiscard]] std::string piece(int32_t id) const;  // "" for an id that has none
  [[nodiscard]] std::optional<int32_t> bos_id() const;
  [[nodiscard]] std::optional<int32_t> eos_id() const;
  [[nodiscard]] std::optional<int32_t> pad_id() const;
  // What the post-processor puts before and after the ids of a text: BOS and EOS, often nothing (tokenizer/document_borders.h).
  [[nodiscard]] const std::vector<int32_t>& prefix_ids() const;
  [[nodiscard]] const std::vector<int32_t>& suffix_ids() const;
  [[nodiscard]] const std::string& fingerprint() const;   // XXH3-128 of files().tokenizer_json, hexadecimal
  [[nodiscard]] const io::TokenizerFiles& files() const;  // as given, but with the added tokens in tokenizer_json

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

// Turns ids into text as they come: holds back bytes until a UTF-8 character is whole.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = true);
  std::string push(int32_t id);  // text that is now certain, may be ""
  std::string finish();          // what is left (invalid bytes as U+FFFD)

 private:
  [[nodiscard]] bool writes_nothing(int32_t id) const;

  const Tokenizer& tokenizer_;
  bool skip_special_tokens_;
  std::vector<int32_t> ids_;
  size_t prefix_ = 0;
  size_t read_ = 0;
};

}  // namespace distil_xlstm
