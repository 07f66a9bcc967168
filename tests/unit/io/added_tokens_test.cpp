// Which tokens the files beside a tokenizer.json add, in transformers' order and with its flags.
#include "io/added_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "unit/io/io_testing.h"

namespace distil_xlstm::io {
namespace {

using ::testing::HasSubstr;

json list_of(const json& config, const json& added = json::object()) {
  return added_tokens(config, "tokenizer_config.json", added, "added_tokens.json");
}

// "content:flags", + before one that replaces; s special, n normalized, l lstrip.
std::vector<std::string> brief(const json& list) {
  std::vector<std::string> all;
  for (const json& entry : list) {
    const json& token = entry["token"];
    std::string text = (entry["replaces"] == true ? "+" : "") + token["content"].get<std::string>() + ":";
    for (const auto& [flag, letter] : {std::pair{"special", "s"}, {"normalized", "n"}, {"lstrip", "l"}})
      text += token[flag] == true ? letter : "";
    if (entry.contains("id")) text += "@" + entry["id"].dump();
    all.push_back(text);
  }
  return all;
}

using Brief = std::vector<std::string>;

TEST(AddedTokens, ComeInTheOrderOfTransformers) {
  EXPECT_EQ(brief(list_of(json::object())), Brief{});
  const json config = json::parse(R"({"eos_token": "<end>", "bos_token": {"content": "<s>", "lstrip": true}, "pad_token": null,
    "image_token": "<image>", "add_bos_token": true, "additional_special_tokens": ["<extra>", "<tool>"],
    "added_tokens_decoder": {"17": {"content": "<end>", "special": false, "normalized": true}, "9": {"content": "<tool>", "lstrip": true},
                             "100": {"content": "<last>", "special": true}}})");
  EXPECT_EQ(brief(list_of(config)), (Brief{"+<tool>:nl@9", "+<end>:sn@17", "+<last>:s@100", "<s>:sl", "<image>:s", "<extra>:s"}));
}

TEST(AddedTokens, ExtraSpecialTokensGoBeforeTheirOldName) {
  EXPECT_EQ(brief(list_of({{"extra_special_tokens", {"<a>"}}, {"additional_special_tokens", {"<b>"}}})), Brief{"<a>:s"});
  EXPECT_EQ(brief(list_of({{"extra_special_tokens", json::object()}, {"additional_special_tokens", {"<b>"}}})), Brief{"<b>:s"});
  EXPECT_EQ(brief(list_of({{"extra_special_tokens", {{"audio_token", "<audio>"}}}})), Brief{"<audio>:s"});
}

TEST(AddedTokens, AddedTokensJsonCountsWhereTheConfigurationListsNone) {
  const json added = {{"<b>", 21}, {"<a>", 20}, {"</s>", 22}};
  EXPECT_EQ(brief(list_of({{"eos_token", "</s>"}}, added)), (Brief{"<a>:n@20", "<b>:n@21", "</s>:s@22"}));
  EXPECT_EQ(brief(list_of({{"added_tokens_decoder", json::object()}}, added)), Brief{});
}

TEST(AddedTokens, SpecialTokensMapGoesBeforeAConfigurationWithoutDecoder) {
  json config = {{"eos_token", "<a>"}, {"additional_special_tokens", {"<x>"}}};
  merge_special_tokens(config, {{"eos_token", "<b>"}, {"pad_token", "<pad>"}, {"additional_special_tokens", {"<y>"}}});
  EXPECT_EQ(config, (json{{"eos_token", "<b>"}, {"additional_special_tokens", {"<x>"}}, {"pad_token", "<pad>"}}));
  json listed = {{"eos_token", "<a>"}, {"added_tokens_decoder", json::object()}};
  merge_special_tokens(listed, {{"eos_token", "<b>"}, {"pad_token", "<pad>"}});
  EXPECT_EQ(listed, (json{{"eos_token", "<a>"}, {"added_tokens_decoder", json::object()}}));
}

TEST(AddedTokens, WrongTypesAreNamed) {
  const auto message = [](const json& config, const json& added = json::object()) {
    return error_of<DataError>([&] { list_of(config, added); });
  };
  EXPECT_THAT(message({{"bos_token", 7}}),
              HasSubstr("tokenizer_config.json: bos_token is 7: it must be a text, an object with 'content', or null"));
  EXPECT_THAT(message({{"added_tokens_decoder", {1}}}), HasSubstr("tokenizer_config.json: added_tokens_decoder must be an object"));
  EXPECT_THAT(message({{"added_tokens_decoder", {{"x", {{"content", "a"}}}}}}), HasSubstr("added_tokens_decoder has the key 'x'"));
  EXPECT_THAT(message({{"added_tokens_decoder", {{"1", "a"}}}}),
              HasSubstr("added_tokens_decoder.1 must be an object with 'content', it is \"a\""));
  EXPECT_THAT(message({{"added_tokens_decoder", {{"1", {{"content", "a"}, {"lstrip", 1}}}}}}),
              HasSubstr("tokenizer_config.json: added_tokens_decoder.1: key 'lstrip' is 1"));
  EXPECT_THAT(message({{"additional_special_tokens", "<a>"}}),
              HasSubstr("additional_special_tokens must be a list of tokens, it is \"<a>\""));
  EXPECT_THAT(message({{"extra_special_tokens", {2}}}), HasSubstr("tokenizer_config.json: extra_special_tokens is 2"));
  EXPECT_THAT(message(json::object(), {{"<a>", "20"}}), HasSubstr("added_tokens.json: key '<a>' is \"20\""));
}

}  // namespace
}  // namespace distil_xlstm::io
