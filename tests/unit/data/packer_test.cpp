// Documents -> ids: BOS, document end, and which ids of a conversation count.
#include <gtest/gtest.h>

#include "base/error.h"
#include "unit/data/data_testing.h"

namespace distil_xlstm::data {
namespace {

std::vector<int32_t> bytes_of(std::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

std::vector<int32_t> join(std::initializer_list<std::vector<int32_t>> parts) {
  std::vector<int32_t> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

Document text_document(const std::string& text, bool begins = true, bool ends = true) {
  Document document;
  document.text = text;
  document.begins = begins;
  document.ends = ends;
  return document;
}

Document conversation(const std::vector<std::pair<std::string, std::string>>& messages) {
  Document document;
  for (const auto& [role, content] : messages) document.conversation.messages.push_back(chat_message(role, content));
  document.row_name = "chat.jsonl: line 7";
  return document;
}

TEST(Packer, PutsBosFirstAndTheEndLast) {
  const std::vector<Document> documents = {text_document("ab"), text_document("c", true, false), text_document("d", false, false),
                                           text_document("", false, true)};
  for (const bool with_bos : {true, false}) {
    for (const std::string end : {"none", "eos", "<s>"}) {
      const auto encoder = byte_encoder(with_bos);
      const auto end_id = document_end_id(end, encoder.eos_id, encoder.token_id);
      Packer packer(encoder, end, BadRowPolicy::skip);
      const auto packed = packer.encode(documents);
      const std::vector<int32_t> bos = with_bos ? std::vector<int32_t>{kTestBos} : std::vector<int32_t>{};
      const std::vector<int32_t> last = end_id ? std::vector<int32_t>{*end_id} : std::vector<int32_t>{};
      ASSERT_EQ(packed.size(), 4U);
      EXPECT_EQ(packed[0].ids, join({bos, bytes_of("ab"), last}));
      EXPECT_EQ(packed[1].ids, join({bos, bytes_of("c")}));
      EXPECT_EQ(packed[2].ids, bytes_of("d"));
      EXPECT_EQ(packed[3].ids, last);
      EXPECT_TRUE(packed[0].counts.empty());
      EXPECT_NE(packed[0].hash, packed[1].hash);
    }
  }
}

TEST(Packer, ConversationsThatEndAsDocumentsDoGetNoSecondEnd) {
  auto encoder = byte_encoder(false);
  encoder.token_id = [](std::string_view piece) { return piece == ";" || piece == "!" ? std::optional<int32_t>(piece[0]) : std::nullopt; };
  const std::vector<Document> documents = {conversation({{"assistant", "a"}})};
  EXPECT_EQ(Packer(encoder, ";", BadRowPolicy::skip).encode(documents)[0].ids.back(), ';');
  EXPECT_EQ(Packer(encoder, ";", BadRowPolicy::skip).encode(documents)[0].ids.size() + 1,
            Packer(encoder, "!", BadRowPolicy::skip).encode(documents)[0].ids.size());
}

// What the tokenizer's post-processor appends, and no second one where document_end names it as well.
TEST(Packer, PutsTheSuffixBeforeTheEnd) {
  auto encoder = byte_encoder();
  encoder.prefix = {258, kTestBos};
  encoder.suffix = {kTestEos};
  const std::vector<Document> documents = {text_document("ab"), text_document("c", true, false), text_document("d", false, true)};
  const auto packed = Packer(encoder, "eos", BadRowPolicy::skip).encode(documents);
  EXPECT_EQ(packed[0].ids, join({{258, kTestBos}, bytes_of("ab"), {kTestEos}}));
  EXPECT_EQ(packed[1].ids, join({{258, kTestBos}, bytes_of("c")}));
  EXPECT_EQ(packed[2].ids, join({bytes_of("d"), {kTestEos}}));
  EXPECT_EQ(Packer(encoder, "none", BadRowPolicy::skip).encode(documents)[0].ids, packed[0].ids);
  EXPECT_EQ(Packer(encoder, "<s>", BadRowPolicy::skip).encode(documents)[2].ids, join({bytes_of("d"), {kTestEos, kTestBos}}));
}

TEST(Packer, RefusesAnUnknownEnd) {
  auto encoder = byte_encoder();
  const auto resolve = [&](const std::string& name) { return document_end_id(name, encoder.eos_id, encoder.token_id); };
  EXPECT_EQ(resolve("none"), std::nullopt);
  EXPECT_EQ(resolve("eos"), kTestEos);
  EXPECT_EQ(resolve("<s>"), kTestBos);
  expect_error<ConfigError>([&] { resolve("<end>"); }, {"<end>", "none", "eos"});
  encoder.eos_id.reset();
  expect_error<ConfigError>([&] { resolve("eos"); }, {"no eos_token"});
}

TEST(Packer, CountsOnlyAnswersOfConversations) {
  Packer packer(byte_encoder(), "eos", BadRowPolicy::skip);
  const auto packed =
      packer.encode(std::vector<Document>{conversation({{"user", "u"}, {"assistant", "yes"}, {"user", "v"}, {"assistant", "no"}}),
                                          text_document("plain"), conversation({{"assistant", "a"}, {"user", "u"}})});
  ASSERT_EQ(packed.size(), 3U);
  // The template says what begins a conversation, as with apply_chat_template: no BOS is added.
  EXPECT_EQ(packed[0].ids, join({bytes_of("user:u;assistant:yes;user:v;assistant:no;"), {kTestEos}}));
  std::string counted;
  for (size_t i = 0; i < packed[0].ids.size(); ++i) {
    if (packed[0].counts[i] != 0) counted += packed[0].ids[i] < 256 ? static_cast<char>(packed[0].ids[i]) : '$';
  }
  EXPECT_EQ(counted, "yes;no;$");  // stopping after the last answer is learnt as well
  EXPECT_TRUE(packed[1].counts.empty());
  EXPECT_EQ(packed[2].ids.back(), kTestEos);
  EXPECT_EQ(packed[2].counts.back(), 0);
}

TEST(Packer, KeepsTheBosThatATemplateWritesAndTellsOfOneInAText) {
  auto encoder = byte_encoder();
  encoder.encode_ranges = [inner = encoder.encode_ranges](std::span<const std::string_view> texts) {
    auto all = inner(texts);
    for (auto& text : all) {
      if (!text.ids.empty() && text.ids[0] == '^') text.ids[0] = kTestBos;
    }
    return all;
  };
  encoder.encode_batch = [inner = encoder.encode_batch](std::span<const std::string_view> texts) {
    auto all = inner(texts);
    for (auto& ids : all) {
      if (!ids.empty() && ids[0] == '^') ids[0] = kTestBos;
    }
    return all;
  };
  encoder.render_spans = [](const Conversation& rendered) {
    return RenderedChat{{{"^q", false}, {rendered.messages.back().at("content").get<std::string>(), true}}};
  };
  Packer packer(encoder, "none", BadRowPolicy::skip);
  const auto packed = packer.encode(std::vector<Document>{conversation({{"assistant", "a"}})});
  EXPECT_EQ(packed[0].ids, (std::vector<int32_t>{kTestBos, 'q', 'a'}));
  EXPECT_EQ(packed[0].counts, (std::vector<uint8_t>{0, 0, 1}));
  EXPECT_FALSE(packed[0].repeats_prefix);
  const auto texts = packer.encode(std::vector<Document>{text_document("^q"), text_document("q")});
  EXPECT_EQ(texts[0].ids, (std::vector<int32_t>{kTestBos, kTestBos, 'q'}));
  EXPECT_TRUE(texts[0].repeats_prefix);
  EXPECT_FALSE(texts[1].repeats_prefix);
}

// A tokenizer that joins ":y" into one id: the token over the border between prompt and answer belongs to the answer.
TEST(Packer, FindsAnswersWhereATokenReachesOverTheirBorder) {
  auto encoder = byte_encoder(false);
  encoder.encode_ranges = [](std::span<const std::string_view> texts) {
    std::vector<EncodedText> all;
    for (const auto text : texts) {
      auto& encoded = all.emplace_back();
      for (size_t i = 0; i < text.size(); i = encoded.ranges.back().end) {
        const bool is_joined = text.substr(i, 2) == ":y";
        encoded.ids.push_back(is_joined ? 259 : static_cast<unsigned char>(text[i]));
        encoded.ranges.push_back({i, i + (is_joined ? 2 : 1)});
      }
    }
    return all;
  };
  Packer packer(encoder, "none", BadRowPolicy::skip);
  const auto packed = packer.encode(std::vector<Document>{conversation({{"user", "u"}, {"assistant", "yes"}, {"user", "w"}})});
  EXPECT_EQ(packed[0].ids, join({bytes_of("user:u;assistant"), {259}, bytes_of("es;user:w;")}));
  std::vector<int32_t> counted;
  for (size_t i = 0; i < packed[0].ids.size(); ++i) {
    if (packed[0].counts[i] != 0) counted.push_back(packed[0].ids[i]);
  }
  EXPECT_EQ(counted, (std::vector<int32_t>{259, 'e', 's', ';'}));
}

TEST(Packer, DropsConversationsThatTheTemplateRefuses) {
  const std::vector<Document> documents = {conversation({{"refused", "x"}}), text_document("a"), conversation({{"refused", "x"}}),
                                           conversation({{"assistant", "b"}})};
  Packer packer(byte_encoder(), "none", BadRowPolicy::skip);
  const auto packed = packer.encode(documents);
  ASSERT_EQ(packed.size(), 2U);
  EXPECT_EQ(packed[0].ids, join({{kTestBos}, bytes_of("a")}));
  EXPECT_EQ(packed[0].source, 1U);
  EXPECT_EQ(packed[0].refused_conversations, 1U);
  EXPECT_EQ(packed[1].source, 3U);
  EXPECT_EQ(packer.refused_conversations(), 2U);
  Packer strict(byte_encoder(), "none", BadRowPolicy::fail);
  expect_error<DataError>([&] { strict.encode(documents); }, {"chat.jsonl: line 7", "roles must alternate", "--bad-rows"});
}

TEST(Packer, NamesTheRolesOfAConversationWithoutAnAnswer) {
  Packer packer(byte_encoder(), "none", BadRowPolicy::skip);
  const auto packed = packer.encode(std::vector<Document>{conversation({{"user", "u"}, {"model", "m"}, {"user", "u"}}),
                                                          conversation({{"assistant", "a"}}), text_document("t")});
  EXPECT_EQ(packed[0].roles, "user, model");
  EXPECT_TRUE(packed[0].is_conversation && packed[1].is_conversation && !packed[2].is_conversation);
  EXPECT_EQ(packed[1].roles + packed[2].roles, "");
}

}  // namespace
}  // namespace distil_xlstm::data
