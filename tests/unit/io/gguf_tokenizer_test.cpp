// tokenizer.json out of a GGUF file: the parts are written as Hugging Face writes them for those models. The ids are compared with
// llama.cpp's in tests/oracles/test_gguf.py.
#include "io/gguf_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <sstream>

#include "base/error.h"
#include "unit/io/gguf_testing.h"
#include "unit/io/io_testing.h"

namespace distil_xlstm::io {
namespace {

using ::testing::HasSubstr;

class GgufTokenizerTest : public ::testing::Test {
 protected:
  TokenizerFiles read(const GgufBuilder& builder) {
    write_text(path_, builder.build());
    return gguf_tokenizer(GgufFile(path_)).value();
  }
  json tokenizer(const GgufBuilder& builder) { return json::parse(read(builder).tokenizer_json); }
  std::string error_for(const GgufBuilder& builder) {
    return error_of<DataError>([&] { read(builder); });
  }

  static GgufBuilder byte_level(const char* pre) {
    GgufBuilder builder;
    builder.string("tokenizer.ggml.model", "gpt2");
    if (*pre != '\0') builder.string("tokenizer.ggml.pre", pre);
    builder.strings("tokenizer.ggml.tokens", {"<|end|>", "a", "b", "ab", "<tool>", "[PAD]"})
        .integers("tokenizer.ggml.token_type", {3, 1, 1, 1, 4, 5});
    return builder.strings("tokenizer.ggml.merges", {"a b"}).size("tokenizer.ggml.bos_token_id", 0).size("tokenizer.ggml.eos_token_id", 0);
  }
  static GgufBuilder sentencepiece() {
    GgufBuilder builder;
    builder.string("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", {"<unk>", "<s>", "▁", "a", "é", "▁a", "▁aé", "aé"});
    builder.floats("tokenizer.ggml.scores", {0, 0, -9, -9, -9, -1, -3, -2}).integers("tokenizer.ggml.token_type", {2, 3, 1, 1, 1, 1, 1, 1});
    return builder.size("tokenizer.ggml.bos_token_id", 1).size("tokenizer.ggml.unknown_token_id", 0);
  }

  TemporaryDirectory directory_;
  fs::path path_ = directory_ / "model.gguf";
};

TEST_F(GgufTokenizerTest, ByteLevelParts) {
  const json result = tokenizer(byte_level("smollm"));
  EXPECT_EQ(result["model"]["type"], "BPE");
  EXPECT_EQ(result["model"]["vocab"].size(), 5U);  // unused tokens are left out
  EXPECT_EQ(result["model"]["vocab"]["ab"], 3);
  EXPECT_EQ(result["model"]["merges"], json::parse(R"([["a", "b"]])"));
  EXPECT_EQ(result["model"]["byte_fallback"], false);
  EXPECT_EQ(result["decoder"]["type"], "ByteLevel");
  ASSERT_EQ(result["added_tokens"].size(), 2U);
  EXPECT_EQ(result["added_tokens"][0]["content"], "<|end|>");
  EXPECT_EQ(result["added_tokens"][0]["special"], true);
  EXPECT_EQ(result["added_tokens"][1]["id"], 4);
  EXPECT_EQ(result["added_tokens"][1]["special"], false);
  EXPECT_EQ(result["post_processor"]["single"], json::parse(R"([{"Sequence": {"id": "A", "type_id": 0}}])"));
}

TEST_F(GgufTokenizerTest, PreTokenizers) {
  const auto parts = [&](const char* pre) {
    const json result = tokenizer(byte_level(pre));
    return json{{"normalizer", result["normalizer"]}, {"pre_tokenizer", result["pre_tokenizer"]}};
  };
  const json whole = {{"add_prefix_space", false}, {"trim_offsets", true}, {"type", "ByteLevel"}, {"use_regex", true}};
  EXPECT_EQ(parts("gpt-2"), (json{{"normalizer", nullptr}, {"pre_tokenizer", whole}}));
  const json smollm = parts("smollm")["pre_tokenizer"]["pretokenizers"];
  EXPECT_EQ(smollm, json::array({json{{"individual_digits", true}, {"type", "Digits"}}, whole}));
  const json qwen2 = parts("qwen2");
  EXPECT_EQ(qwen2["normalizer"], json::parse(R"({"type": "NFC"})"));
  EXPECT_EQ(qwen2["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
            R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
  EXPECT_EQ(qwen2["pre_tokenizer"]["pretokenizers"][1]["use_regex"], false);
  const json llama = parts("llama-bpe");
  EXPECT_TRUE(llama["normalizer"].is_null());
  EXPECT_EQ(llama["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
            R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)");
  EXPECT_EQ(tokenizer(byte_level("llama-bpe"))["model"]["ignore_merges"], true);
  EXPECT_EQ(parts("default")["pre_tokenizer"]["pretokenizers"].size(), 5U);
  EXPECT_EQ(parts(""), parts("default"));
}

TEST_F(GgufTokenizerTest, WarnsOnceWhereThePreTokenizerIsNotNamed) {
  std::ostringstream log;
  const auto previous = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log)));
  const auto warnings = [&](const GgufBuilder& builder) {
    log.str("");
    read(builder);
    read(builder);
    return log.str();
  };
  const std::string missing = warnings(byte_level("")), empty = warnings(byte_level("").string("tokenizer.ggml.pre", ""));
  const std::string by_default = warnings(byte_level("default")), named = warnings(byte_level("qwen2")), other = warnings(sentencepiece());
  spdlog::set_default_logger(previous);
  EXPECT_THAT(missing, HasSubstr("model.gguf: tokenizer.ggml.pre is missing: how the text was cut in training is not known"));
  EXPECT_EQ(missing.find("warning"), missing.rfind("warning"));
  EXPECT_THAT(empty, HasSubstr("tokenizer.ggml.pre is empty"));
  EXPECT_THAT(by_default, HasSubstr("tokenizer.ggml.pre is \"default\""));
  EXPECT_EQ(named, "");
  EXPECT_EQ(other, "");
}

TEST_F(GgufTokenizerTest, BeginAndEnd) {
  const auto single = [&](const GgufBuilder& builder) { return tokenizer(builder)["post_processor"]["single"]; };
  const json end = json::parse(R"({"SpecialToken": {"id": "<|end|>", "type_id": 0}})");
  EXPECT_EQ(single(byte_level("smollm")).size(), 1U);
  EXPECT_EQ(single(byte_level("llama-bpe"))[0], end);  // adds BOS unless told otherwise
  EXPECT_EQ(single(byte_level("llama-bpe").flag("tokenizer.ggml.add_bos_token", false)).size(), 1U);
  const TokenizerFiles both =
      read(byte_level("qwen2").flag("tokenizer.ggml.add_bos_token", true).flag("tokenizer.ggml.add_eos_token", true));
  const json processor = json::parse(both.tokenizer_json)["post_processor"];
  EXPECT_EQ(processor["single"].size(), 3U);
  EXPECT_EQ(processor["pair"].size(), 6U);
  EXPECT_EQ(processor["special_tokens"]["<|end|>"], json::parse(R"({"id": "<|end|>", "ids": [0], "tokens": ["<|end|>"]})"));
  EXPECT_EQ(both.tokenizer_config["add_bos_token"], true);
  EXPECT_EQ(both.tokenizer_config["add_eos_token"], true);
}

TEST_F(GgufTokenizerTest, Config) {
  const TokenizerFiles files = read(byte_level("smollm").string("tokenizer.chat_template", "{{ messages }}"));
  EXPECT_EQ(files.tokenizer_config["bos_token"], "<|end|>");
  EXPECT_EQ(files.tokenizer_config["chat_template"], "{{ messages }}");
  const TokenizerFiles both =
      read(byte_level("smollm").string("tokenizer.chat_template", "a").string("tokenizer.chat_template.tool_use", "b"));
  EXPECT_EQ(both.tokenizer_config["chat_template"],
            json::parse(R"([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}])"));
  EXPECT_EQ(files.tokenizer_config["add_bos_token"], false);
  EXPECT_FALSE(files.tokenizer_config.contains("pad_token"));
  EXPECT_EQ(files.origin, path_.string());
}

TEST_F(GgufTokenizerTest, SentencePiece) {
  const json result = tokenizer(sentencepiece());
  // Best score first: "▁a" (-1), "aé" (-2), then the two ways to make "▁aé" (-3), the longer left part first.
  EXPECT_EQ(result["model"]["merges"], json::parse(R"([["▁", "a"], ["a", "é"], ["▁a", "é"], ["▁", "aé"]])"));
  EXPECT_EQ(result["model"]["unk_token"], "<unk>");
  EXPECT_EQ(result["model"]["byte_fallback"], false);
  EXPECT_TRUE(result["pre_tokenizer"].is_null());
  EXPECT_EQ(result["normalizer"]["normalizers"].size(), 2U);
  EXPECT_EQ(result["decoder"]["decoders"].size(), 4U);
  EXPECT_EQ(result["post_processor"]["single"].size(), 2U);
  const json bare = tokenizer(sentencepiece().flag("tokenizer.ggml.add_space_prefix", false).flag("tokenizer.ggml.add_bos_token", false));
  EXPECT_EQ(bare["normalizer"]["normalizers"].size(), 1U);
  EXPECT_EQ(bare["decoder"]["decoders"].size(), 3U);
  EXPECT_EQ(bare["post_processor"]["single"].size(), 1U);
}

TEST_F(GgufTokenizerTest, NoTokenizer) {
  write_text(path_, GgufBuilder().build());
  EXPECT_FALSE(gguf_tokenizer(GgufFile(path_)).has_value());
  write_text(path_, GgufBuilder().string("tokenizer.ggml.model", "no_vocab").build());
  EXPECT_FALSE(gguf_tokenizer(GgufFile(path_)).has_value());
}

TEST_F(GgufTokenizerTest, Refused) {
  EXPECT_THAT(error_for(GgufBuilder().string("tokenizer.ggml.model", "bert")), HasSubstr("tokenizer.ggml.model = 'bert' is not supported"));
  EXPECT_THAT(error_for(byte_level("deepseek-llm")),
              HasSubstr("tokenizer.ggml.pre = 'deepseek-llm' is not supported: smollm, qwen2, llama-bpe, gpt-2 and default are"));
  EXPECT_THAT(error_for(byte_level("gpt-2").size("tokenizer.ggml.padding_token_id", 6)),
              HasSubstr("padding_token_id is 6, the vocabulary has 6 tokens"));
  EXPECT_THAT(error_for(byte_level("gpt-2").string("tokenizer.chat_template", "\xff")), HasSubstr("chat_template is not UTF-8"));
  EXPECT_THAT(error_for(sentencepiece().flag("tokenizer.ggml.remove_extra_whitespaces", true)), HasSubstr("remove_extra_whitespaces"));
  const auto bpe = [](const std::vector<std::string>& tokens) {
    return GgufBuilder().string("tokenizer.ggml.model", "gpt2").strings("tokenizer.ggml.tokens", tokens);
  };
  EXPECT_THAT(error_for(GgufBuilder().string("tokenizer.ggml.model", "gpt2")), HasSubstr("'tokenizer.ggml.tokens' is missing"));
  EXPECT_THAT(error_for(bpe({"a", "b"})), HasSubstr("'tokenizer.ggml.merges' is missing"));
  EXPECT_THAT(error_for(bpe({"a", "b", "a"})), HasSubstr("tokenizer.ggml.tokens[0] and [2] are both 'a'"));
  EXPECT_THAT(error_for(bpe({"a", "\xff"})), HasSubstr("tokenizer.ggml.tokens[1] is not UTF-8"));
  EXPECT_THAT(error_for(bpe({"a", "\xff"})
                            .integers("tokenizer.ggml.token_type", {1, 5})
                            .strings("tokenizer.ggml.merges", {})
                            .size("tokenizer.ggml.padding_token_id", 1)),
              HasSubstr("tokenizer.ggml.tokens[1] is not UTF-8"))
      << "an unused piece that is a special token";
  EXPECT_THAT(error_for(bpe({"a"}).integers("tokenizer.ggml.token_type", {1, 1})),
              HasSubstr("token_type has 2 entries, tokenizer.ggml.tokens 1"));
  for (const char* merge : {"a b", "ab", "a", "", "a  b", "\xff a"}) {
    EXPECT_THAT(error_for(bpe({"a", "b"}).strings("tokenizer.ggml.merges", {merge})), HasSubstr("it must be two tokens that make a third"))
        << merge;
  }
  GgufBuilder no_scores;
  no_scores.string("tokenizer.ggml.model", "llama").strings("tokenizer.ggml.tokens", {"a"}).floats("tokenizer.ggml.scores", {});
  EXPECT_THAT(error_for(no_scores), HasSubstr("scores has 0 entries"));
}

}  // namespace
}  // namespace distil_xlstm::io
