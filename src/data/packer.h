// Documents -> token ids: between what the tokenizer puts around a text, the end that was asked for last. Conversations get nothing but
// that end, where they lack it, as their template writes the rest; and which of their ids count for the loss.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/text_reader.h"
#include "tokenizer/document_borders.h"
#include "tokenizer/tokenizer.h"

namespace distil_xlstm::data {

// What packing needs of a tokenizer. All functions may be called from any one thread.
struct TextEncoder {
  std::function<std::vector<std::vector<int32_t>>(std::span<const std::string_view>)> encode_batch;  // no special tokens added
  std::function<std::vector<EncodedText>(std::span<const std::string_view>)> encode_ranges;          // the same with places
  std::function<RenderedChat(const Conversation&)> render_spans;                                     // throws Error where it cannot
  std::function<std::optional<int32_t>(std::string_view)> token_id;
  std::vector<int32_t> prefix, suffix;  // what the tokenizer puts around a text
  std::optional<int32_t> eos_id;
  int64_t vocab_size = 0;
  int64_t num_rows = 0;  // of the model whose tokenizer it is, which may be fewer; 0: not known
  std::string fingerprint;
  std::string chat_template_fingerprint;  // "" when it has no chat template
};

// A view of `tokenizer`, which must outlive it. Its chat template is compiled when the first conversation comes.
TextEncoder make_encoder(const Tokenizer& tokenizer);

// Of the documents that are no conversations.
DocumentBorders borders_of(const TextEncoder& encoder, const std::string& document_end);

// A document (or a part of one) as it goes to ShardWriter::add.
struct TokenDocument {
  std::vector<int32_t> ids;
  std::vector<uint8_t> counts;  // empty: all count
  bool is_conversation = false;
  std::string roles;            // of a conversation in which nothing counts: its roles, for messages
  int64_t missing_answers = 0;  // RenderedChat::num_missing_answers
  bool begins = true;
  bool ends = true;
  uint64_t hash = 0;                   // of its text: decides the split
  size_t source = 0;                   // its place among the documents given
  uint64_t refused_conversations = 0;  // up to here, since the beginning
  bool repeats_prefix = false;         // its text began with what the tokenizer puts before it as well
};

class Packer {
 public:
  Packer(TextEncoder encoder, const std::string& document_end, BadRowPolicy bad_rows);

  // Encodes on all cores, in order. A conversation that the template refuses is dropped and counted (policy fail: DataError).
  std::vector<TokenDocument> encode(std::span<const Document> documents);
  [[nodiscard]] uint64_t refused_conversations() const { return refused_; }
  void set_refused_conversations(uint64_t count) { refused_ = count; }

 private:
  RenderedChat render(const Document& document, bool& is_refused);
  void add_borders(TokenDocument& document) const;
  void add_end(TokenDocument& conversation) const;
  TextEncoder encoder_;
  std::optional<int32_t> document_end_id_;
  DocumentBorders borders_;
  BadRowPolicy bad_rows_;
  uint64_t refused_ = 0;
  bool has_told_ = false;
};

}  // namespace distil_xlstm::data
