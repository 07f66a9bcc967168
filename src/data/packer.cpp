#include "data/packer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "base/error.h"
#include "base/hash.h"

namespace distil_xlstm::data {

TextEncoder make_encoder(const Tokenizer& tokenizer) {
  TextEncoder encoder;
  encoder.encode_batch = [&tokenizer](std::span<const std::string_view> texts) { return tokenizer.encode_batch(texts, false); };
  encoder.render_spans = [&tokenizer, chat = std::shared_ptr<ChatTemplate>()](const std::vector<ChatMessage>& messages) mutable {
    if (!chat) {
      // Not a fault of one row: no conversation can be prepared with this tokenizer.
      try {
        chat = std::make_shared<ChatTemplate>(tokenizer.files());
      } catch (const DataError& error) {
        throw ConfigError("the text holds conversations, but the tokenizer cannot render them: {}", error.what());
      }
    }
    return chat->render_spans(messages);
  };
  encoder.token_id = [&tokenizer](std::string_view piece) { return tokenizer.token_id(piece); };
  encoder.prefix = tokenizer.prefix_ids();
  encoder.suffix = tokenizer.suffix_ids();
  encoder.eos_id = tokenizer.eos_id();
  encoder.vocab_size = tokenizer.vocab_size();
  encoder.fingerprint = tokenizer.fingerprint();
  return encoder;
}

DocumentBorders borders_of(const TextEncoder& encoder, const std::string& document_end) {
  return document_borders(encoder.prefix, encoder.suffix, document_end_id(document_end, encoder.eos_id, encoder.token_id));
}

Packer::Packer(TextEncoder encoder, const std::string& document_end, BadRowPolicy bad_rows)
    : encoder_(std::move(encoder)),
      document_end_id_(document_end_id(document_end, encoder_.eos_id, encoder_.token_id)),
      borders_(borders_of(encoder_, document_end)),
      bad_rows_(bad_rows) {}

// A rendered conversation: encoded whole, as `transformers` does, and span by span, to find where answers begin and end.
struct Packer::Conversation {
  std::string whole;
  std::vector<ChatSpan> spans;
};

namespace {

size_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
}

uint64_t hash_of(std::string_view text) {
  return xxh3_64(std::as_bytes(std::span(text.data(), text.size())));
}

}  // namespace

void Packer::add_borders(TokenDocument& document) const {
  if (document.begins) {
    document.repeats_prefix = begins_with(document.ids, borders_.begin);
    document.ids.insert(document.ids.begin(), borders_.begin.begin(), borders_.begin.end());
  }
  if (document.ends) document.ids.insert(document.ids.end(), borders_.end.begin(), borders_.end.end());
}

// The template writes what begins and ends a conversation, as with apply_chat_template and `generate --chat`.
void Packer::add_end(TokenDocument& conversation) const {
  if (!conversation.ends || !document_end_id_) return;
  // After an answer that runs to the end the model is to learn to stop; after anything else it is not asked.
  if (!conversation.counts.empty()) conversation.counts.push_back(conversation.counts.back());
  conversation.ids.push_back(*document_end_id_);
}

std::vector<TokenDocument> Packer::encode(std::span<const Document> documents) {
  std::vector<Conversation> conversations(documents.size());
  std::vector<std::string_view> texts;
  std::vector<bool> refused(documents.size(), false);
  bool any_refused = false;
  for (size_t i = 0; i < documents.size(); ++i) {
    auto& conversation = conversations[i];
    if (documents[i].messages.empty()) {
      texts.push_back(documents[i].text);
      continue;
    }
    try {
      conversation.spans = encoder_.render_spans(documents[i].messages);
    } catch (const DataError& error) {
      if (bad_rows_ == BadRowPolicy::fail) throw;
      if (refused_ == 0 && !any_refused) spdlog::warn("a conversation cannot be rendered: {}", error.what());
      refused[i] = any_refused = true;
      continue;
    }
    for (const auto& span : conversation.spans) conversation.whole += span.text;
    texts.push_back(conversation.whole);
    for (const auto& span : conversation.spans) texts.push_back(span.text);
  }
  auto encoded = encoder_.encode_batch(texts);

  std::vector<TokenDocument> result;
  result.reserve(documents.size());
  size_t next = 0;
  for (size_t i = 0; i < documents.size(); ++i) {
    if (refused[i]) {
      ++refused_;
      continue;
    }
    const size_t whole = next++;
    TokenDocument document{
        std::move(encoded[whole]), {}, documents[i].begins, documents[i].ends, hash_of(texts[whole]), i, refused_, false};
    const auto& spans = conversations[i].spans;
    if (!spans.empty()) {
      // Where the pieces are those of the whole, the spans' lengths are the answers' places. Elsewhere a token reaches over a
      // border: then the beginning of the text up to that border is encoded, and what agrees with the whole lies before it.
      const std::span pieces(encoded.data() + next, spans.size());
      next += spans.size();
      document.counts.assign(document.ids.size(), 0);
      std::vector<int32_t> joined;
      for (const auto& piece : pieces) joined.insert(joined.end(), piece.begin(), piece.end());
      const bool exact = joined == document.ids;
      std::string prefix;
      size_t begin = 0;
      for (size_t s = 0; s < spans.size(); ++s) {
        size_t end = begin + pieces[s].size();
        if (!exact) {
          prefix += spans[s].text;
          const std::string_view view = prefix;
          const auto ids = s + 1 == spans.size() ? document.ids : encoder_.encode_batch({&view, 1}).front();
          end = std::max(begin, common_prefix(ids, document.ids));
        }
        if (spans[s].is_answer)
          std::fill(document.counts.begin() + static_cast<ptrdiff_t>(begin), document.counts.begin() + static_cast<ptrdiff_t>(end),
                    uint8_t{1});
        begin = end;
      }
    }
    if (documents[i].messages.empty()) {
      add_borders(document);
    } else {
      add_end(document);
    }
    result.push_back(std::move(document));
  }
  return result;
}

}  // namespace distil_xlstm::data
