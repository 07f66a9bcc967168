#include "tokenizer/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/hash.h"
#include "base/text.h"
#include "io/model_files_tokenizer.h"
#include "support/source_directory.h"
#include "tokenizer/document_borders.h"
#include "tokenizer_testing.h"

namespace distil_xlstm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

io::TokenizerFiles stories_files() {
  const auto files = io::read_tokenizer_files({source_directory() / "share" / "models" / "stories260K"});
  EXPECT_TRUE(files.has_value());
  return files.value();
}

// Each recorded text: ids, ids with special tokens, ids with special tokens as plain text, and both decodings.
void check_cases(const Tokenizer& tokenizer, const json& cases) {
  ASSERT_GT(cases.size(), 50u);
  for (const json& row : cases) {
    const auto text = row.at("text").get<std::string>();
    SCOPED_TRACE(row.at("text").dump());
    EXPECT_EQ(tokenizer.encode(text), row.at("ids").get<Ids>());
    EXPECT_EQ(tokenizer.encode(text, true), row.at("with_special").get<Ids>());
    EXPECT_EQ(tokenizer.encode(text, false, false), row.at("plain").get<Ids>());
    EXPECT_EQ(tokenizer.decode(row.at("with_special").get<Ids>()), row.at("decoded").get<std::string>());
    EXPECT_EQ(tokenizer.decode(row.at("with_special").get<Ids>(), true), row.at("decoded_skipping").get<std::string>());
  }
}

TEST(Tokenizer, ByteLevelIdsEqualThePythonPackage) {
  check_cases(Tokenizer(golden_files()), golden_cases().at("byte_level"));
}

TEST(Tokenizer, SentencePieceStyleIdsEqualThePythonPackage) {
  check_cases(Tokenizer(stories_files()), golden_cases().at("stories260K"));
}

TEST(Tokenizer, BatchEqualsOneByOne) {
  const Tokenizer tokenizer(golden_files());
  std::vector<std::string> texts;
  for (const json& row : golden_cases().at("byte_level")) texts.push_back(row.at("text").get<std::string>());
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  for (const bool special : {false, true}) {
    const auto batch = tokenizer.encode_batch(views, special);
    ASSERT_EQ(batch.size(), texts.size());
    for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(batch[i], tokenizer.encode(texts[i], special)) << texts[i];
  }
  EXPECT_TRUE(tokenizer.encode_batch({}).empty());
}

TEST(Tokenizer, ManyThreadsShareOne) {
  const Tokenizer tokenizer(golden_files());
  const json& cases = golden_cases().at("byte_level");
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (const json& row : cases) {
        const auto text = row.at("text").get<std::string>();
        if (tokenizer.encode(text, false, false) != row.at("plain").get<Ids>() || tokenizer.encode(text) != row.at("ids").get<Ids>())
          ++count;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

TEST(Tokenizer, PiecesIdsAndSpecialTokens) {
  const Tokenizer tokenizer(golden_files());
  EXPECT_EQ(tokenizer.vocab_size(), 341);  // 340 trained, <tool> added
  EXPECT_EQ(tokenizer.token_id("<tool>"), 340);
  EXPECT_EQ(tokenizer.piece(340), "<tool>");
  EXPECT_EQ(tokenizer.piece(341), "");
  EXPECT_EQ(tokenizer.piece(-1), "");
  EXPECT_EQ(tokenizer.token_id("no such piece"), std::nullopt);
  EXPECT_EQ(tokenizer.token_id("\xff"), std::nullopt);
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  EXPECT_EQ(tokenizer.pad_id(), std::nullopt);
  EXPECT_EQ(tokenizer.fingerprint(), xxh3_128_hex(golden_files().tokenizer_json));
  EXPECT_EQ(tokenizer.decode(Ids{5, 341, -1, 100000}), tokenizer.decode(Ids{5}));
}

// As transformers 5: add_bos_token and add_eos_token say nothing beside a tokenizer.json, nor need bos_token be named.
TEST(Tokenizer, PrefixAndSuffixFollowThePostProcessor) {
  const json golden = parse_json(golden_files().tokenizer_json, "golden");
  const auto piece = [](const char* name) { return json{{"SpecialToken", {{"id", name}, {"type_id", 0}}}}; };
  const json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const auto check = [&](const json& single, const json& settings, const Ids& prefix, const Ids& suffix) {
    io::TokenizerFiles files = golden_files();
    files.tokenizer_config.update(settings);
    json changed = golden;
    changed["post_processor"] = nullptr;
    if (!single.is_null()) {
      changed["post_processor"] = {{"type", "TemplateProcessing"}, {"single", single}, {"pair", json::array()}};
      changed["post_processor"]["pair"] = json::array({text, {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}});
      changed["post_processor"]["special_tokens"] =
          json::parse(R"({"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}})");
    }
    files.tokenizer_json = changed.dump();
    const Tokenizer tokenizer(files);
    SCOPED_TRACE(single.dump() + settings.dump());
    EXPECT_EQ(tokenizer.prefix_ids(), prefix);
    EXPECT_EQ(tokenizer.suffix_ids(), suffix);
    Ids whole = tokenizer.encode("The fox");
    whole.insert(whole.begin(), prefix.begin(), prefix.end());
    whole.insert(whole.end(), suffix.begin(), suffix.end());
    EXPECT_EQ(tokenizer.encode("The fox", true), whole);
  };
  check(nullptr, {{"add_bos_token", true}}, {}, {});
  const json bos = piece("<s>"), eos = piece("</s>"), unchanged = json::object();
  check(json::array({text}), {{"add_bos_token", true}, {"add_eos_token", true}}, {}, {});
  check(json::array({bos, text}), {{"add_bos_token", false}}, {0}, {});
  check(json::array({bos, text}), {{"add_eos_token", true}}, {0}, {});
  check(json::array({bos, text}), {{"bos_token", nullptr}}, {0}, {});
  check(json::array({text, eos}), unchanged, {}, {1});
  check(json::array({eos, bos, text, bos, eos}), unchanged, {1, 0}, {0, 1});
}

TEST(Tokenizer, PromptsBeginAsDocumentsDoButOnce) {
  const Tokenizer tokenizer(golden_files());  // its post-processor puts <s> first
  Ids fox = tokenizer.encode("The fox");
  fox.insert(fox.begin(), 0);
  EXPECT_EQ(encode_prompt(tokenizer, "The fox"), fox);
  EXPECT_EQ(encode_prompt(tokenizer, "<s>The fox"), fox);
  EXPECT_EQ(encode_prompt(tokenizer, ""), Ids{0});
  EXPECT_EQ(document_borders(tokenizer, 1).begin, Ids{0});
  EXPECT_EQ(document_borders(tokenizer, 1).end, Ids{1});
}

// What the configuration adds, described by the tokenizer.json that results; nothing changes where nothing is new.
TEST(Tokenizer, TokensThatOtherFilesAdd) {
  io::TokenizerFiles files = golden_files();
  const auto token = [](const char* content, bool special) {
    return json{{"content", content}, {"single_word", false}, {"lstrip", false},
                {"rstrip", false},    {"normalized", false},  {"special", special}};
  };
  files.added_tokens = {{{"token", token("<s>", true)}, {"replaces", false}},
                        {{"token", token("<new>", true)}, {"replaces", true}, {"id", 341}}};
  const Tokenizer tokenizer(files);
  EXPECT_EQ(tokenizer.vocab_size(), 342);
  EXPECT_EQ(tokenizer.encode("<new>"), Ids{341});
  EXPECT_EQ(tokenizer.decode(Ids{341, 341}, true), "");
  EXPECT_EQ(tokenizer.fingerprint(), xxh3_128_hex(tokenizer.files().tokenizer_json));
  EXPECT_NE(tokenizer.fingerprint(), Tokenizer(golden_files()).fingerprint());

  io::TokenizerFiles saved = tokenizer.files();  // as in a run's directory
  saved.added_tokens = files.added_tokens;
  const Tokenizer again(saved);
  EXPECT_EQ(again.fingerprint(), tokenizer.fingerprint());
  EXPECT_EQ(again.encode("<new>"), Ids{341});

  files.added_tokens.erase(1);
  EXPECT_EQ(Tokenizer(files).fingerprint(), Tokenizer(golden_files()).fingerprint());
  files.added_tokens[0]["replaces"] = true;  // golden's <s> is not normalized and special: the same
  EXPECT_EQ(Tokenizer(files).fingerprint(), Tokenizer(golden_files()).fingerprint());
}

TEST(Tokenizer, IgnoresTruncationAndPaddingOfTheFile) {
  io::TokenizerFiles files = golden_files();
  json parsed = parse_json(files.tokenizer_json, "golden");
  parsed["truncation"] = {{"direction", "Right"}, {"max_length", 2}, {"strategy", "LongestFirst"}, {"stride", 0}};
  parsed["padding"] = {
      {"strategy", {{"Fixed", 50}}}, {"direction", "Right"}, {"pad_to_multiple_of", nullptr}, {"pad_id", 1}, {"pad_type_id", 0},
      {"pad_token", "</s>"}};
  const Ids expected = Tokenizer(files).encode("The fox ran on and on");
  files.tokenizer_json = parsed.dump();
  EXPECT_EQ(Tokenizer(files).encode("The fox ran on and on"), expected);
}

TEST(Tokenizer, WrongInputsAreNamed) {
  io::TokenizerFiles files = golden_files();
  const Tokenizer tokenizer(files);
  EXPECT_THAT(message_of([&] { (void)tokenizer.encode("ab\xC3("); }),
              HasSubstr("golden/tokenizer.json: cannot encode: the text is not UTF-8 at byte 2"));
  const std::vector<std::string_view> texts = {"fine", "x\xFF"};
  EXPECT_THAT(message_of([&] { (void)tokenizer.encode_batch(texts); }), HasSubstr("text 1: the text is not UTF-8 at byte 1"));
  files.tokenizer_config["bos_token"] = 7;
  EXPECT_THAT(message_of([&] { Tokenizer wrong(files); }), HasSubstr("golden/tokenizer.json: bos_token is 7: it must be a text"));
  for (const char* broken :
       {"", "{", "[]", "{}", "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"a b\"]}}", "\xff\xfe"}) {
    files.tokenizer_json = broken;
    EXPECT_THAT(message_of([&] { Tokenizer wrong(files); }), HasSubstr("golden/tokenizer.json: tokenizer.json cannot be used: ")) << broken;
  }
}

TEST(StreamDecoder, GivesWholeCharactersThatJoinToTheDecodedText) {
  for (const io::TokenizerFiles& files : {golden_files(), stories_files()}) {
    const Tokenizer tokenizer(files);
    for (const json& row : golden_cases().at("byte_level")) {
      const auto text = row.at("text").get<std::string>();
      const Ids ids = tokenizer.encode(text, true);
      for (const bool skip : {true, false}) {
        StreamDecoder decoder(tokenizer, skip);
        std::string joined;
        for (const int32_t id : ids) {
          const std::string part = decoder.push(id);
          EXPECT_EQ(valid_utf8_prefix(part), part.size());
          joined += part;
        }
        EXPECT_EQ(joined + decoder.finish(), tokenizer.decode(ids, skip)) << text;
      }
    }
  }
}

TEST(StreamDecoder, HoldsBackABrokenCharacterUntilTheEnd) {
  const Tokenizer tokenizer(golden_files());
  const Ids euro = tokenizer.encode("€");
  ASSERT_EQ(euro.size(), 3u);
  StreamDecoder decoder(tokenizer);
  EXPECT_EQ(decoder.push(euro[0]), "");
  EXPECT_EQ(decoder.push(euro[1]), "");
  EXPECT_EQ(decoder.push(euro[2]), "€");
  EXPECT_EQ(decoder.push(euro[0]), "");
  EXPECT_EQ(decoder.finish(), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.finish(), "");
  EXPECT_EQ(decoder.push(9999), "");  // an id without a piece, as a padded vocabulary has
}

TEST(StreamDecoder, DoesNotHoldBackEndlessGarbage) {
  const Tokenizer tokenizer(golden_files());
  const int32_t first_byte = tokenizer.encode("€")[0];
  StreamDecoder decoder(tokenizer);
  std::string joined;
  for (int i = 0; i < 500; ++i) joined += decoder.push(first_byte);
  EXPECT_GT(joined.size(), 3u * 400);
  EXPECT_EQ((joined + decoder.finish()).size(), 3u * 500);
}

}  // namespace
}  // namespace distil_xlstm
