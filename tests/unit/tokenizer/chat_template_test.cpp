#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/log.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer_testing.h"

namespace distil_xlstm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

io::TokenizerFiles files_with(const json& chat_template) {
  io::TokenizerFiles files = golden_files();
  files.tokenizer_config["chat_template"] = chat_template;
  return files;
}

ChatTemplate golden_template(const std::string& name) {
  return ChatTemplate(files_with(golden_cases().at("templates").at(name)));
}

std::vector<ChatMessage> messages_of(const json& list) {
  std::vector<ChatMessage> messages;
  for (const json& message : list) messages.push_back({message.at("role").get<std::string>(), message.at("content").get<std::string>()});
  return messages;
}

std::vector<std::string> answers(const ChatTemplate& chat_template, const std::vector<ChatMessage>& messages) {
  std::vector<std::string> found;
  std::string joined;
  for (const ChatSpan& span : chat_template.render_spans(messages)) {
    if (span.is_answer) found.push_back(span.text);
    joined += span.text;
  }
  EXPECT_EQ(joined, chat_template.render(messages, false));
  return found;
}

std::string render(const std::string& source) {
  return ChatTemplate(files_with(source)).render({{"user", "hi"}}, false);
}

TEST(ChatTemplate, RefusesAMessageThatLeavesNoMark) {
  std::string all;
  for (unsigned code = 0xE000; code <= 0xF8FF; ++code) {
    all +=
        {static_cast<char>(0xE0 | (code >> 12)), static_cast<char>(0x80 | ((code >> 6) & 0x3F)), static_cast<char>(0x80 | (code & 0x3F))};
  }
  const ChatTemplate chat_template(files_with("{{ messages[0].content }}"));
  EXPECT_THROW(chat_template.render_spans({{"user", all}, {"assistant", "a"}}), DataError);
}

TEST(ChatTemplate, TakesTheAddedTokensOutOfALargeTokenizerInTime) {
  io::TokenizerFiles files = files_with("{{ messages[0].content }}<|end|>");
  nlohmann::json tokenizer = {{"added_tokens", {{{"content", "<|end|>"}}, "<|plain|>"}}};
  for (int i = 0; i < 100000; ++i) tokenizer["model"]["vocab"][fmt::format("t{}", i)] = i;
  files.tokenizer_json = tokenizer.dump();
  const double begin = monotonic_seconds();
  EXPECT_THAT(answers(ChatTemplate(files), {{"assistant", "A"}}), ElementsAre("A<|end|>"));
  EXPECT_LT(monotonic_seconds() - begin, 5.0);
  files.tokenizer_json = R"({"added_tokens": [{"content": 5}]})";
  EXPECT_THAT(message_of([&] { ChatTemplate{files}; }), HasSubstr("'content' of a special token"));
}

TEST(ChatTemplate, RendersAsTransformers) {
  ASSERT_GT(golden_cases().at("chats").size(), 20u);
  for (const json& row : golden_cases().at("chats")) {
    SCOPED_TRACE(row.dump());
    const ChatTemplate chat_template = golden_template(row.at("template").get<std::string>());
    const auto work = [&] { return chat_template.render(messages_of(row.at("messages")), row.at("add_generation_prompt").get<bool>()); };
    if (row.contains("text")) {
      EXPECT_EQ(work(), row.at("text").get<std::string>());
    } else {
      EXPECT_THAT(message_of(work), HasSubstr(row.at("error").get<std::string>()));
    }
  }
}

const std::vector<ChatMessage> kTwoTurns = {{"user", "U1"}, {"assistant", "A1"}, {"user", "U2"}, {"assistant", "A2"}};
const std::vector<ChatMessage> kThinking = {
    {"user", "U1"}, {"assistant", "<think>hm</think>\n\nA1"}, {"user", "U2"}, {"assistant", "<think>ha</think>A2"}};
const std::vector<ChatMessage> kSpaced = {{"user", "U1"}, {"assistant", " \n A1 \n"}, {"user", "U2"}};

TEST(ChatTemplate, AnswersAreContentsWithTheirEndOfTurn) {
  EXPECT_THAT(answers(golden_template("chatml"), kTwoTurns), ElementsAre("A1</s>", "A2</s>"));
  EXPECT_THAT(answers(golden_template("chatml"), kSpaced), ElementsAre(" \n A1 \n</s>"));
  EXPECT_THAT(answers(golden_template("trimming"), kTwoTurns), ElementsAre("A1</s>", "A2</s>"));
  EXPECT_THAT(answers(golden_template("trimming"), kSpaced), ElementsAre("A1</s>"));
}

TEST(ChatTemplate, AnswersWhoseReasoningATemplateDropsAreFound) {
  EXPECT_THAT(answers(golden_template("blocks"), kThinking), ElementsAre("A1</s>", "<think>ha</think>A2</s>"));
  EXPECT_THAT(answers(golden_template("chatml"), kThinking), ElementsAre("<think>hm</think>\n\nA1</s>", "<think>ha</think>A2</s>"));
}

TEST(ChatTemplate, AnswersAreToldFromTheSameWordsOfTheUser) {
  const ChatTemplate chat_template = golden_template("chatml");
  const auto spans = chat_template.render_spans({{"user", "yes"}, {"assistant", "yes"}});
  ASSERT_EQ(spans.size(), 3u);
  EXPECT_EQ(spans[0].text, "<sep>system\nYou help.</s>\n<sep>user\nyes</s>\n<sep>assistant\n");
  EXPECT_EQ(spans[1].text, "yes</s>");
  EXPECT_EQ(spans[2].text, "\n");
}

TEST(ChatTemplate, ContentsWithPrivateCharactersAndNoAnswer) {
  const ChatTemplate chat_template = golden_template("chatml");
  EXPECT_THAT(answers(chat_template, {{"user", "\xEE\x80\x80 x"}, {"assistant", "\xEE\x80\x80 1 \xEE\x80\x81 y"}}),
              ElementsAre("\xEE\x80\x80 1 \xEE\x80\x81 y</s>"));
  EXPECT_TRUE(answers(chat_template, {{"user", "x"}}).empty());
  EXPECT_TRUE(answers(chat_template, {{"user", "x"}, {"assistant", ""}}).empty());
}

TEST(ChatTemplate, PythonSpellings) {
  EXPECT_EQ(render("{{ true }} {{ none }} {{ 1.0 }} {{ undefined_name }}|{{ bos_token }}{{ eos_token }}{{ pad_token }}"),
            "True None 1.0 |<s></s>");
  EXPECT_EQ(render("{{ {'b': [1, 'é<'], 'a': none} | tojson(sort_keys=true) }}"), "{\"a\": null, \"b\": [1, \"é<\"]}");
  EXPECT_EQ(render("{{ ['é', []] | tojson(ensure_ascii=true, separators=(',', ':')) }}"), "[\"\\u00e9\",[]]");
  EXPECT_EQ(render("{{ [1, {}] | tojson(indent=1) }}"), "[\n 1,\n {}\n]");
  EXPECT_EQ(render("{{ strftime_now('%Y') | length }}"), "4");
}

TEST(ChatTemplate, NamedTemplatesGiveTheDefaultOne) {
  const ChatTemplate chat_template(files_with({{{"name", "tool_use"}, {"template", "T"}}, {{"name", "default"}, {"template", "D"}}}));
  EXPECT_EQ(chat_template.render({{"user", "x"}}, true), "D");
}

TEST(ChatTemplate, WrongTemplatesAreNamed) {
  const auto made_from = [](const json& source) { return message_of([&] { ChatTemplate wrong(files_with(source)); }); };
  EXPECT_THAT(message_of([] { ChatTemplate wrong(golden_files()); }),
              HasSubstr("golden/tokenizer.json: the tokenizer has no chat_template"));
  EXPECT_THAT(made_from("a\n{% if %}"), HasSubstr("golden/tokenizer.json: chat_template: line 2: "));
  EXPECT_THAT(made_from({{{"name", "rag"}, {"template", "R"}}}), HasSubstr("an entry named 'default'"));
  EXPECT_THAT(made_from(3), HasSubstr("must be a text"));
  EXPECT_THAT(message_of([] { render("{{ raise_exception('no such role') }}"); }), HasSubstr("line 1: no such role"));
  EXPECT_THAT(message_of([] { render("{{ messages[0].nothing.more }}"); }), HasSubstr("chat_template: line 1: undefined value"));
  EXPECT_THAT(message_of([] { (void)ChatTemplate(files_with("x")).render({{"user", "\xff"}}, false); }),
              HasSubstr("a message is not UTF-8"));
  const ChatTemplate shouting(files_with("{% for m in messages %}{{ m.content | length }}{% endfor %}"));
  EXPECT_THAT(message_of([&] { (void)shouting.render_spans({{"assistant", "abc"}}); }), HasSubstr("the answers cannot be found"));
}

}  // namespace
}  // namespace distil_xlstm
