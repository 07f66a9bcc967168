#include "data/packer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>

#include "base/error.h"
#include "base/hash.h"
#include "base/text.h"

namespace distil_xlstm::data {

TextEncoder make_encoder(const Tokenizer& tokenizer) {
  TextEncoder encoder;
  encoder.encode_batch = [&tokenizer](std::span<const std::string_view> texts) { return tokenizer.encode_batch(texts, false); };
  encoder.encode_ranges = [&tokenizer](std::span<const std::string_view> texts) { return tokenizer.encode_ranges(texts); };
  encoder.render_spans = [&tokenizer, chat = std::shared_ptr<ChatTemplate>()](const Conversation& conversation) mutable {
    if (!chat) {
      // Not a fault of one row: no conversation can be prepared with this tokenizer.
      try {
        chat = std::make_shared<ChatTemplate>(tokenizer.files());
      } catch (const DataError& error) {
        throw ConfigError("the text holds conversations, but the tokenizer cannot render them: {}", error.what());
      }
    }
    return chat->render_spans(conversation);
  };
  encoder.token_id = [&tokenizer](std::string_view piece) { return tokenizer.token_id(piece); };
  encoder.prefix = tokenizer.prefix_ids();
  encoder.suffix = tokenizer.suffix_ids();
  encoder.eos_id = tokenizer.eos_id();
  encoder.vocab_size = tokenizer.vocab_size();
  encoder.fingerprint = tokenizer.fingerprint();
  encoder.chat_template_fingerprint = chat_template_fingerprint(tokenizer.files());
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

namespace {

uint64_t hash_of(std::string_view text) {
  return xxh3_64(std::as_bytes(std::span(text.data(), text.size())));
}

std::string roles_of(const Conversation& conversation) {
  std::vector<std::string> roles;
  for (const json& message : conversation.messages) {
    const auto role = get_or<std::string>(message, "role", "");
    if (roles.size() < 8 && std::ranges::find(roles, role) == roles.end()) roles.push_back(role);
  }
  return join(roles, ", ");
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
  if (!conversation.ids.empty() && conversation.ids.back() == *document_end_id_) return;  // as the template ends already
  // After an answer that runs to the end the model is to learn to stop; after anything else it is not asked.
  if (!conversation.counts.empty()) conversation.counts.push_back(conversation.counts.back());
  conversation.ids.push_back(*document_end_id_);
}

RenderedChat Packer::render(const Document& document, bool& is_refused) {
  try {
    return encoder_.render_spans(document.conversation);
  } catch (const DataError& error) {
    if (bad_rows_ == BadRowPolicy::fail) throw DataError("{}: {} (--bad-rows skip goes on)", document.row_name, error.what());
    if (!has_told_) spdlog::warn("{}: a conversation cannot be rendered: {}", document.row_name, error.what());
    is_refused = has_told_ = true;
    return {};
  }
}

std::vector<TokenDocument> Packer::encode(std::span<const Document> documents) {
  std::vector<RenderedChat> chats(documents.size());
  std::vector<std::string> rendered(documents.size());
  std::vector<uint8_t> refused(documents.size(), 0);
  std::vector<std::string_view> texts, conversations;
  for (size_t i = 0; i < documents.size(); ++i) {
    if (documents[i].conversation.empty()) {
      texts.emplace_back(documents[i].text);
      continue;
    }
    bool is_refused = false;
    chats[i] = render(documents[i], is_refused);
    refused[i] = is_refused ? 1 : 0;
    if (is_refused) continue;
    for (const auto& span : chats[i].spans) rendered[i] += span.text;
    conversations.emplace_back(rendered[i]);
  }
  auto plain = encoder_.encode_batch(texts);
  auto chat = encoder_.encode_ranges(conversations);

  std::vector<TokenDocument> result;
  result.reserve(documents.size());
  size_t next_plain = 0, next_chat = 0;
  for (size_t i = 0; i < documents.size(); ++i) {
    refused_ += refused[i];
    if (refused[i] != 0) continue;
    const bool is_chat = !documents[i].conversation.empty();
    TokenDocument document;
    document.begins = documents[i].begins;
    document.ends = documents[i].ends;
    document.hash = hash_of(is_chat ? rendered[i] : documents[i].text);
    document.source = i;
    document.is_conversation = is_chat;
    document.refused_conversations = refused_;
    if (is_chat) {
      document.counts = answer_mask(chat[next_chat], chats[i].spans);
      document.missing_answers = chats[i].num_missing_answers;
      document.ids = std::move(chat[next_chat++].ids);
      if (std::ranges::find(document.counts, 1) == document.counts.end()) document.roles = roles_of(documents[i].conversation);
    } else {
      document.ids = std::move(plain[next_plain++]);
    }
    if (is_chat) {
      add_end(document);
    } else {
      add_borders(document);
    }
    result.push_back(std::move(document));
  }
  return result;
}

}  // namespace distil_xlstm::data
