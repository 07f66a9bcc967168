// Documents -> token ids: BOS first where the tokenizer adds it, the end that was asked for last, and in conversations which
// ids count for the loss.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/text_reader.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::data {

// What packing needs of a tokenizer. All functions may be called from any one thread.
struct TextEncoder {
  std::function<std::vector<std::vector<int32_t>>(std::span<const std::string_view>)> encode_batch;  // no special tokens added
  std::function<std::vector<ChatSpan>(const std::vector<ChatMessage>&)> render_spans;                // throws Error where it cannot
  std::function<std::optional<int32_t>(std::string_view)> token_id;
  std::optional<int32_t> bos_id;  // set when documents begin with it
  std::optional<int32_t> eos_id;
  int64_t vocab_size = 0;
  std::string fingerprint;
};

// A view of `tokenizer`, which must outlive it. Its chat template is compiled when the first conversation comes.
TextEncoder make_encoder(const Tokenizer& tokenizer);

// "none" | "eos" | TOKEN -> the id that ends a document. Throws ConfigError for a token that the tokenizer does not have.
std::optional<int32_t> resolve_document_end(const TextEncoder& encoder, const std::string& document_end);

// A document (or a part of one) as it goes to ShardWriter::add.
struct TokenDocument {
  std::vector<int32_t> ids;
  std::vector<uint8_t> counts;  // empty: all count
  bool begins = true;
  bool ends = true;
  uint64_t hash = 0;                   // of its text: decides the split
  size_t source = 0;                   // its place among the documents given
  uint64_t refused_conversations = 0;  // up to here, since the beginning
};

class Packer {
 public:
  Packer(TextEncoder encoder, std::optional<int32_t> document_end_id, BadRowPolicy bad_rows);

  // Encodes on all cores, in order. A conversation that the template refuses is dropped and counted (policy fail: DataError).
  std::vector<TokenDocument> encode(std::span<const Document> documents);
  [[nodiscard]] uint64_t refused_conversations() const { return refused_; }
  void set_refused_conversations(uint64_t count) { refused_ = count; }

 private:
  struct Conversation;
  void add_borders(TokenDocument& document) const;
  TextEncoder encoder_;
  std::optional<int32_t> document_end_id_;
  BadRowPolicy bad_rows_;
  uint64_t refused_ = 0;
};

}  // namespace distil_xlstm::data
