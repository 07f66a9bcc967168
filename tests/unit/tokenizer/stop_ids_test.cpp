// Which ids end a text, and what a configuration may say about them.
#include "tokenizer/stop_ids.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tokenizer_testing.h"

namespace distil_xlstm {
namespace {

using ::testing::HasSubstr;
using Ids = std::vector<int32_t>;

io::ModelFiles files_with(const json& generation, const json& config) {
  io::ModelFiles files;
  files.path = golden_tokenizer_directory();
  files.config = {{"vocab_size", 400}};
  files.config.update(config);
  files.generation_config = generation;
  files.generation_config_origin = "m/generation_config.json";
  return files;
}

TEST(StopIds, ComeFromBothConfigurationsAndTheTokenizer) {
  const Tokenizer tokenizer(golden_files());  // EOS is 1
  const auto found = [&](const json& generation, const json& config) { return stop_ids(files_with(generation, config), tokenizer); };
  EXPECT_EQ(found(json::object(), json::object()), (Ids{1}));
  EXPECT_EQ(found({{"eos_token_id", {7, 3}}}, {{"eos_token_id", 5}}), (Ids{1, 3, 5, 7}));
  EXPECT_EQ(found({{"eos_token_id", nullptr}}, {{"eos_token_id", json::array()}}), (Ids{1}));
  EXPECT_EQ(found({{"eos_token_id", 1}}, {{"eos_token_id", {1, 399}}}), (Ids{1, 399}));
}

TEST(StopIds, OfAnotherTypeAreNamedWithFileAndKey) {
  const Tokenizer tokenizer(golden_files());
  for (const json& wrong : {json("2"), json(2.0), json(true), json::array({"2"}), json::array({2, 2.5}), json{{"id", 2}}, json(-1),
                            json(400), json::array({1, 4294967298})}) {
    const std::string expected = "eos_token_id = " + wrong.dump() + " must be an integer or a list of integers, each from 0 to 399";
    EXPECT_THAT(message_of([&] { stop_ids(files_with({{"eos_token_id", wrong}}, json::object()), tokenizer); }),
                HasSubstr("m/generation_config.json: " + expected));
    EXPECT_THAT(message_of([&] { stop_ids(files_with(json::object(), {{"eos_token_id", wrong}}), tokenizer); }),
                HasSubstr("config.json: " + expected));
  }
}

TEST(StopIds, AreWrittenAsHuggingFaceDoes) {
  const Tokenizer tokenizer(golden_files());
  EXPECT_EQ(generation_config({1}, tokenizer), (json{{"bos_token_id", 0}, {"eos_token_id", 1}}));
  EXPECT_EQ(generation_config({1, 5}, tokenizer), (json{{"bos_token_id", 0}, {"eos_token_id", {1, 5}}}));
  EXPECT_EQ(generation_config({}, tokenizer), (json{{"bos_token_id", 0}}));
}

}  // namespace
}  // namespace distil_xlstm
