#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/log.h"
#include "tokenizer/chat_template.h"
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

using Turns = std::vector<std::pair<std::string, std::string>>;

Conversation chat(const Turns& turns) {
  Conversation conversation;
  for (const auto& [role, content] : turns) conversation.messages.push_back(chat_message(role, content));
  return conversation;
}

// Of a row of a data set, which must be right.
Conversation conversation_of(json row) {
  Conversation conversation;
  EXPECT_EQ(take_conversation(std::move(row), "messages", conversation), "");
  return conversation;
}

std::vector<std::string> answers(const ChatTemplate& chat_template, const Conversation& messages) {
  std::vector<std::string> found;
  std::string joined;
  for (const ChatSpan& span : chat_template.render_spans(messages).spans) {
    if (span.is_answer) found.push_back(span.text);
    joined += span.text;
  }
  EXPECT_EQ(joined, chat_template.render(messages, false));
  return found;
}

std::string render(const std::string& source) {
  return ChatTemplate(files_with(source)).render(chat({{"user", "hi"}}), false);
}

TEST(ChatTemplate, RefusesAMessageThatLeavesNoMark) {
  std::string all;
  for (unsigned code = 0xE000; code <= 0xF8FF; ++code) {
    all +=
        {static_cast<char>(0xE0 | (code >> 12)), static_cast<char>(0x80 | ((code >> 6) & 0x3F)), static_cast<char>(0x80 | (code & 0x3F))};
  }
  const ChatTemplate chat_template(files_with("{{ messages[0].content }}"));
  EXPECT_THROW(chat_template.render_spans(chat({{"user", all}, {"assistant", "a"}})), DataError);
}

TEST(ChatTemplate, TakesTheAddedTokensOutOfALargeTokenizerInTime) {
  io::TokenizerFiles files = files_with("{{ messages[0].content }}<|end|>");
  nlohmann::json tokenizer = {{"added_tokens", {{{"content", "<|end|>"}}, "<|plain|>"}}};
  for (int i = 0; i < 100000; ++i) tokenizer["model"]["vocab"][fmt::format("t{}", i)] = i;
  files.tokenizer_json = tokenizer.dump();
  const double begin = monotonic_seconds();
  EXPECT_THAT(answers(ChatTemplate(files), chat({{"assistant", "A"}})), ElementsAre("A<|end|>"));
  EXPECT_LT(monotonic_seconds() - begin, 5.0);
  files.tokenizer_json = R"({"added_tokens": [{"content": 5}]})";
  EXPECT_THAT(message_of([&] { ChatTemplate{files}; }), HasSubstr("'content' of a special token"));
}

TEST(ChatTemplate, RendersAsTransformers) {
  ASSERT_GT(golden_cases().at("chats").size(), 20u);
  for (const json& row : golden_cases().at("chats")) {
    SCOPED_TRACE(row.dump());
    const ChatTemplate chat_template = golden_template(row.at("template").get<std::string>());
    const auto work = [&] {
      return chat_template.render(Conversation{row.at("messages"), nullptr}, row.at("add_generation_prompt").get<bool>());
    };
    if (row.contains("text")) {
      EXPECT_EQ(work(), row.at("text").get<std::string>());
    } else {
      EXPECT_THAT(message_of(work), HasSubstr(row.at("error").get<std::string>()));
    }
  }
}

const Conversation kTwoTurns = chat({{"user", "U1"}, {"assistant", "A1"}, {"user", "U2"}, {"assistant", "A2"}});
const Conversation kThinking =
    chat({{"user", "U1"}, {"assistant", "<think>hm</think>\n\nA1"}, {"user", "U2"}, {"assistant", "<think>ha</think>A2"}});
const Conversation kSpaced = chat({{"user", "U1"}, {"assistant", " \n A1 \n"}, {"user", "U2"}});

TEST(ChatTemplate, AnswersAreContentsWithTheirEndOfTurn) {
  EXPECT_THAT(answers(golden_template("chatml"), kTwoTurns), ElementsAre("A1</s>", "A2</s>"));
  EXPECT_THAT(answers(golden_template("chatml"), kSpaced), ElementsAre(" \n A1 \n</s>"));
  EXPECT_THAT(answers(golden_template("trimming"), kTwoTurns), ElementsAre("A1</s>", "A2</s>"));
  EXPECT_THAT(answers(golden_template("trimming"), kSpaced), ElementsAre("A1</s>"));
}

TEST(ChatTemplate, AnswersWhoseReasoningATemplateDropsAreFound) {
  // Marked, they are what stands between the marks; without marks what is left of the content is found.
  EXPECT_THAT(answers(golden_template("blocks"), kThinking), ElementsAre("A1</s>\n", "<think>ha</think>A2</s>\n"));
  auto source = golden_cases().at("templates").at("blocks").get<std::string>();
  for (const std::string tag : {"    {% generation %}\n", "    {% endgeneration %}\n"}) source.erase(source.find(tag), tag.size());
  EXPECT_THAT(answers(ChatTemplate(files_with(source)), kThinking), ElementsAre("A1</s>", "<think>ha</think>A2</s>"));
  EXPECT_THAT(answers(golden_template("chatml"), kThinking), ElementsAre("<think>hm</think>\n\nA1</s>", "<think>ha</think>A2</s>"));
}

TEST(ChatTemplate, AnswersAreToldFromTheSameWordsOfTheUser) {
  const ChatTemplate chat_template = golden_template("chatml");
  const auto spans = chat_template.render_spans(chat({{"user", "yes"}, {"assistant", "yes"}})).spans;
  ASSERT_EQ(spans.size(), 3u);
  EXPECT_EQ(spans[0].text, "<sep>system\nYou help.</s>\n<sep>user\nyes</s>\n<sep>assistant\n");
  EXPECT_EQ(spans[1].text, "yes</s>");
  EXPECT_EQ(spans[2].text, "\n");
}

TEST(ChatTemplate, ContentsWithPrivateCharactersAndNoAnswer) {
  const ChatTemplate chat_template = golden_template("chatml");
  EXPECT_THAT(answers(chat_template, chat({{"user", "\xEE\x80\x80 x"}, {"assistant", "\xEE\x80\x80 1 \xEE\x80\x81 y"}})),
              ElementsAre("\xEE\x80\x80 1 \xEE\x80\x81 y</s>"));
  EXPECT_TRUE(answers(chat_template, chat({{"user", "x"}})).empty());
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
  EXPECT_EQ(chat_template.render(chat({{"user", "x"}}), true), "D");
  EXPECT_EQ(chat_template.render(conversation_of({{"messages", {chat_message("user", "x")}}, {"tools", json::array()}}), true), "T");
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
  EXPECT_THAT(message_of([] { (void)ChatTemplate(files_with("x")).render(chat({{"user", "\xff"}}), false); }),
              HasSubstr("a message is not UTF-8"));
  const ChatTemplate shouting(files_with("{% for m in messages %}{{ m.content | length }}{% endfor %}"));
  EXPECT_THAT(message_of([&] { (void)shouting.render_spans(chat({{"assistant", "abc"}})); }), HasSubstr("the answers cannot be found"));
}

constexpr const char* kQwenLike =
    "{% if tools %}<sep>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</s>\n{% endif %}"
    "{% for m in messages %}<sep>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls %}\n<call>{{ call.function | tojson }}</call>{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<sep>assistant\n{% endif %}";

TEST(ChatTemplate, EveryKeyOfAMessageReachesTheTemplate) {
  const ChatTemplate chat_template(files_with(kQwenLike));
  const Conversation conversation = conversation_of(json::parse(R"({"tools": [{"name": "f", "args": {"z": 1, "a": 1.0}}], "messages": [
      {"role": "user", "content": "U"},
      {"role": "assistant", "reasoning": "R", "content": "C", "tool_calls": [{"function": {"name": "f", "args": {"x": 1}}}]},
      {"role": "tool", "content": "7"},
      {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "g"}}], "other": null},
      {"role": "assistant", "content": ""},
      {"role": "assistant", "content": "last"}]})"));
  EXPECT_EQ(chat_template.render(conversation, false),
            "<sep>system\n{\"name\": \"f\", \"args\": {\"z\": 1, \"a\": 1.0}}\n</s>\n<sep>user\nU</s>\n"
            "<sep>assistant\n<think>\nR\n</think>\n\nC<call>{\"name\": \"f\", \"args\": {\"x\": 1}}</call></s>\n<sep>tool\n7</s>\n"
            "<sep>assistant\n<call>{\"name\": \"g\"}</call></s>\n<sep>assistant\n</s>\n<sep>assistant\nlast</s>\n");
  EXPECT_THAT(answers(chat_template, conversation),
              ElementsAre("<think>\nR\n</think>\n\nC<call>{\"name\": \"f\", \"args\": {\"x\": 1}}</call></s>",
                          "<call>{\"name\": \"g\"}</call></s>", "</s>", "last</s>"));
}

// As Qwen3's: the last answer is written with its reasoning, even where it has none, those before only with a tool call's result behind.
constexpr const char* kQwen3Like =
    "{% set ns = namespace(last=messages | length - 1, open=true) %}"
    "{% for m in messages[::-1] %}{% if ns.open and m.role == 'user' %}{% set ns.open = false %}"
    "{% set ns.last = messages | length - 1 - loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'assistant' %}<sep>assistant\n"
    "{% set why = m.reasoning_content or '' %}"
    "{% if loop.index0 > ns.last and (loop.last or why) %}<think>\n{{ why.strip('\n') }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first }}"
    "<call>\n{\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}\n</call>{% endfor %}</s>\n"
    "{% else %}<sep>{{ m.role }}\n{{ m.content }}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<sep>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}";

ChatTemplate qwen3_like() {
  io::TokenizerFiles files = files_with(kQwen3Like);
  for (const char* token : {"<call>", "</call>", "<think>", "</think>", "<sep>"}) {
    files.tokenizer_config["added_tokens_decoder"][token] = {{"content", token}};
  }
  return ChatTemplate(files);
}

TEST(ChatTemplate, ToolCallsAndReasoningCountWhereverTheTurnStands) {
  const ChatTemplate chat_template = qwen3_like();
  const std::string call = R"({"function": {"name": "f", "arguments": {"city": "Z </call> x", "n": 1}}})";
  const std::string call_text = "<call>\n{\"name\": \"f\", \"arguments\": {\"city\": \"Z </call> x\", \"n\": 1}}\n</call>";
  const auto found = [&](const std::string& messages) {
    return answers(chat_template, conversation_of(json::parse(R"({"messages": [{"role": "user", "content": "U"},)" + messages + "]}")));
  };
  const std::string result = R"(,{"role": "tool", "content": "7"})";
  for (const char* content : {R"("")", "null"}) {
    const std::string turn = fmt::format(R"({{"role": "assistant", "content": {}, "tool_calls": [{}]}})", content, call);
    if (std::string(content) != "null") {
      EXPECT_THAT(found(turn), ElementsAre("<think>\n\n</think>\n\n" + call_text + "</s>"));
      EXPECT_THAT(found(turn + result + R"(,{"role": "assistant", "content": "A"})"),
                  ElementsAre(call_text + "</s>", "<think>\n\n</think>\n\nA</s>"));
    }
  }
  const std::string both =
      fmt::format(R"({{"role": "assistant", "content": "C", "reasoning_content": "\nR\n", "tool_calls": [{}, {}]}})", call, call);
  const std::string both_text = "<think>\nR\n</think>\n\nC\n" + call_text + "\n" + call_text + "</s>";
  EXPECT_THAT(found(both), ElementsAre(both_text));
  EXPECT_THAT(found(both + result), ElementsAre(both_text));
  EXPECT_THAT(found(both + result + "," + both), ElementsAre(both_text, both_text));
  // With a user's words behind it the reasoning is left out, and the turn begins with what is left.
  EXPECT_THAT(found(both + result + R"(,{"role": "user", "content": "V"},{"role": "assistant", "content": "A", "reasoning_content": "S"})"),
              ElementsAre("C\n" + call_text + "\n" + call_text + "</s>", "<think>\nS\n</think>\n\nA</s>"));
}

TEST(ChatTemplate, LongConversationsWithToolCallsAreRenderedAFewTimes) {
  Conversation conversation;
  for (int i = 0; i < 1000; ++i) {
    conversation.messages.push_back(chat_message(i % 2 == 0 ? "user" : "tool", "x"));
    json answer = chat_message("assistant", "");
    answer["tool_calls"] = {{{"function", {{"name", "f"}, {"arguments", {{"i", i}}}}}}};
    conversation.messages.push_back(answer);
  }
  const double begin = monotonic_seconds();
  EXPECT_EQ(answers(qwen3_like(), conversation).size(), 1000u);
  EXPECT_LT(monotonic_seconds() - begin, 20.0);
}

TEST(ChatTemplate, AnEndThatOnlyTurnsBeforeTheLastHaveCounts) {
  const ChatTemplate chat_template(
      files_with("{% for m in messages %}<sep>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
                 "</call>{% endfor %}{% if not loop.last %}</s>\n{% endif %}{% endfor %}"
                 "{% if add_generation_prompt %}</s>\n<sep>assistant\n{% endif %}"));
  Conversation conversation = chat({{"user", "U"}, {"assistant", ""}, {"tool", "7"}, {"assistant", ""}, {"user", "V"}, {"assistant", "A"}});
  conversation.messages[1]["tool_calls"] = {{{"function", {{"name", "f"}}}}};
  EXPECT_THAT(answers(chat_template, conversation), ElementsAre("<call>f</call></s>", "</s>", "A"));
}

TEST(ChatTemplate, ATemplateMayRefuseToAskBehindAnAnswer) {
  const ChatTemplate refusing(
      files_with("{% if add_generation_prompt and messages[-1].role == 'assistant' %}{{ raise_exception('answered') }}{% endif %}"
                 "{% for m in messages %}<sep>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}{% for c in m.tool_calls or [] %}<call>"
                 "{{ c.function.name }}</call>{% endfor %}</s>\n{% endfor %}{% if add_generation_prompt %}<sep>assistant\n{% endif %}"));
  Conversation conversation = chat({{"user", "U"}, {"assistant", "<think>R</think>A"}, {"user", "V"}, {"assistant", ""}});
  conversation.messages[3]["tool_calls"] = {{{"function", {{"name", "f"}}}}};
  EXPECT_THAT(answers(refusing, conversation), ElementsAre("A</s>", "<call>f</call></s>"));
}

TEST(ChatTemplate, AnswersThatAreNotFoundAreTold) {
  const ChatTemplate cutting(files_with("{% for m in messages[-2:] %}<sep>{{ m.content }}</s>{% endfor %}"));
  const RenderedChat chat_of_two = cutting.render_spans(kTwoTurns);
  EXPECT_EQ(chat_of_two.num_missing_answers, 1);
  EXPECT_EQ(chat_of_two.spans.at(1).text, "A2</s>");
  EXPECT_EQ(qwen3_like().render_spans(kTwoTurns).num_missing_answers, 0);
}

TEST(ChatTemplate, VariablesOfARowReachTheTemplate) {
  const ChatTemplate chat_template(files_with("{{ thinking_on }} {{ documents[0].title }} {{ bos_token }} {{ tools is none }}"));
  const Conversation conversation = conversation_of(json::parse(
      R"({"messages": [{"role": "user", "content": "U"}], "documents": [{"title": "T"}], "chat_template_kwargs": {"thinking_on": false}})"));
  EXPECT_EQ(chat_template.render(conversation, false), "False T <s> True");
}

TEST(ChatTemplate, AnEmptyAnswerIsItsEndOfTurn) {
  EXPECT_THAT(answers(golden_template("chatml"), chat({{"user", "x"}, {"assistant", ""}})), ElementsAre("</s>"));
  EXPECT_THAT(answers(golden_template("chatml"), chat({{"user", "x"}, {"assistant", ""}, {"user", "y"}, {"assistant", "z"}})),
              ElementsAre("</s>", "z</s>"));
  EXPECT_THAT(answers(golden_template("trimming"), chat({{"user", "x"}, {"assistant", " \n"}, {"user", "y"}, {"assistant", "z"}})),
              ElementsAre("</s>", "z</s>"));
  const ChatTemplate choosy(
      files_with("{% for m in messages %}<{{ m.role }}>{% if m.content %}{{ m.content }}{% endif %}</s>{% endfor %}"
                 "{% if add_generation_prompt %}<assistant>{% endif %}"));
  EXPECT_THAT(answers(choosy, chat({{"user", "x"}, {"assistant", ""}})), ElementsAre("</s>"));
}

TEST(ChatTemplate, GenerationMarksAreTheAnswers) {
  const ChatTemplate marked(
      files_with("{% for m in messages %}\n{% if m.role == 'assistant' %}\n  {%- generation -%}\n  because {{ m.content }}</s>"
                 "\n  {%- endgeneration -%}\n{% else %}{{ m.content }}|{% endif %}\n{% endfor %}"));
  EXPECT_EQ(marked.render(kTwoTurns, false), "U1|because A1</s>U2|because A2</s>");
  EXPECT_THAT(answers(marked, kTwoTurns), ElementsAre("because A1</s>", "because A2</s>"));
  EXPECT_THAT(answers(marked, chat({{"user", "x"}})), ElementsAre());
  EXPECT_THAT(answers(marked, chat({{"user", "\xEE\x80\x80"}, {"assistant", "\xEE\x80\x81"}})), ElementsAre("because \xEE\x80\x81</s>"));
  // What is set inside stays inside, as in a call block.
  EXPECT_EQ(
      ChatTemplate(files_with("{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}")).render(kTwoTurns, false),
      "21");
  EXPECT_THAT(answers(ChatTemplate(files_with("{% generation %}a{% generation %}b{% endgeneration %}{% endgeneration %}c")), kTwoTurns),
              ElementsAre("ab"));
  const ChatTemplate cutting(files_with("{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x[1:] }}"));
  EXPECT_THAT(message_of([&] { (void)cutting.render_spans(kTwoTurns); }), HasSubstr("generation marks"));
}

TEST(ChatTemplate, PartsOfAContentAreForTheTemplate) {
  const Conversation conversation = conversation_of(json::parse(
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "U"}]}, {"role": "assistant", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]}]})"));
  const ChatTemplate parts(files_with("{% for m in messages %}<sep>{% for p in m.content %}{{ p.text }}{% endfor %}</s>{% endfor %}"));
  EXPECT_THAT(answers(parts, conversation), ElementsAre("AB</s>"));
  EXPECT_THAT(message_of([&] { (void)golden_template("chatml").render(conversation, false); }), HasSubstr("list of parts"));
}

TEST(ChatTemplate, AnswerMaskCountsEveryIdThatReachesIntoAnAnswer) {
  const std::vector<ChatSpan> spans = {{"ab", false}, {"cd", true}, {"", true}, {"ef", false}};
  const auto mask = [&](std::vector<TextRange> ranges) {
    EncodedText encoded{std::vector<int32_t>(ranges.size(), 0), ranges};
    return answer_mask(encoded, spans);
  };
  EXPECT_THAT(mask({{0, 2}, {2, 4}, {4, 6}}), ElementsAre(0, 1, 0));
  EXPECT_THAT(mask({{0, 1}, {1, 3}, {3, 5}, {5, 6}}), ElementsAre(0, 1, 1, 0));             // over either border
  EXPECT_THAT(mask({{0, 2}, {2, 3}, {2, 3}, {3, 4}, {4, 6}}), ElementsAre(0, 1, 1, 1, 0));  // a character of two ids
  EXPECT_THAT(mask({{0, 2}, {3, 3}, {3, 4}, {5, 5}, {5, 6}}), ElementsAre(0, 1, 1, 0, 0));  // a space without a place
  EXPECT_THAT(mask({{0, 6}}), ElementsAre(1));
}

TEST(ChatTemplate, FingerprintsTellTemplatesApart) {
  EXPECT_EQ(chat_template_fingerprint(golden_files()), "");
  EXPECT_EQ(chat_template_fingerprint(files_with("a")).size(), 32u);
  EXPECT_EQ(chat_template_fingerprint(files_with("a")), chat_template_fingerprint(files_with("a\n")));  // Jinja drops it
  EXPECT_NE(chat_template_fingerprint(files_with("a")), chat_template_fingerprint(files_with("b")));
  EXPECT_NE(chat_template_fingerprint(files_with({{{"name", "default"}, {"template", "a"}}})), chat_template_fingerprint(files_with("a")));
}

std::string repeated(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

// A template is a program of strangers: each of these would run for ever, or take all memory or the stack.
TEST(ChatTemplate, StaysWithinItsBounds) {
  const auto refusal = [](const std::string& source) { return message_of([&] { render(source); }); };
  const double begin = monotonic_seconds();
  const std::string doubled = "{% set a0 = [1, bos_token] %}" + [] {
    std::string sets;
    for (int i = 0; i < 60; ++i) sets += fmt::format("{{% set a{} = [a{}, a{}] %}}", i + 1, i, i);
    return sets;
  }();
  const std::string many = "{% set a = 'a' * 100000 %}";
  const std::string kept = "{% set n = namespace(x=1) %}{% for i in range(99999) %}";
  for (const std::string& source : {
           std::string(
               "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"),
           std::string("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"),
           std::string("{{ '%1000000000d' | format(1) }}"),
           std::string("{{ '{:1000000000}'.format(1) }}"),
           std::string("{{ 'a' * 99999999 * 99999999 }}"),
           many + "{{ a.replace('a', a) }}",
           many + "{{ a | replace('a', a) }}",
           many + "{{ a.join(a | list) }}",
           many + "{{ ('{0}' * 100000).format(a) }}",
           doubled + "{{ a60 }}",
           doubled + "{{ a60 ~ '' }}",
           doubled + "{{ a60 | tojson }}",
           doubled + "{{ a60 | upper }}",
           kept + "{% set n.x = n.x, n.x %}{% endfor %}{{ n.x }}",
           std::string("{% macro f(x, n) %}{% if n > 0 %}{{ f([x, x], n - 1) }}{% else %}{{ x }}{% endif %}{% endmacro %}{{ f(1, 60) }}"),
       }) {
    EXPECT_THAT(refusal(source), HasSubstr("too many steps")) << source.substr(0, 200);
  }
  EXPECT_LT(monotonic_seconds() - begin, 60.0);
  EXPECT_THAT(refusal("{{ messages | tojson(indent=1000000000) }}"), HasSubstr("at most 100"));
  for (const std::string& source : {"{{ " + repeated("not ", 200000) + "1 }}", "{{ messages" + repeated(".a", 300000) + " }}",
                                    "{{ " + repeated("-", 200000) + "1 }}", "{{ 1" + repeated(" if a else 1", 50000) + " }}",
                                    "{{ a" + repeated("|trim", 100000) + " }}", "{{ 1" + repeated("~a", 200000) + " }}"}) {
    EXPECT_THAT(refusal(source), HasSubstr("names and operators")) << source.substr(0, 20);
  }
  EXPECT_THAT(refusal("{% if a %}" + repeated("{% elif a %}", 50000) + "{% endif %}"), HasSubstr("elif"));
  EXPECT_THAT(refusal(repeated("{{ (", 1) + repeated("(", 900) + "1"), HasSubstr("recursion"));
  EXPECT_THAT(refusal(repeated("a", 2 << 20)), HasSubstr("bytes"));
  EXPECT_THAT(refusal("{% for a in [1] recursive %}{{ loop([a, a]) }}{% endfor %}"), HasSubstr("recursive"));
  EXPECT_THAT(refusal("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), HasSubstr("recursion"));
  for (const char* value : {"[n.x]", "{'a': n.x}", "dict(a=n.x)"}) {
    EXPECT_THAT(refusal(kept + "{% set n.x = " + value + " %}{% endfor %}{{ n.x }}"), HasSubstr("100 levels")) << value;
  }
  EXPECT_THAT(refusal("{% set n = namespace() %}{% set n.x = n %}{{ n }}"), HasSubstr("a namespace that keeps"));
  EXPECT_THAT(refusal("{% set n = namespace() %}{% macro m() %}{{ n }}{% endmacro %}{% set n.x = m %}{{ n }}"),
              HasSubstr("a namespace that keeps"));
  EXPECT_LT(refusal("{{ raise_exception('a' * 10000000) }}").size(), 2000u);
}

// What the bounds rewrite means what it meant.
TEST(ChatTemplate, LiteralsAndNamespacesKeepTheirMeaning) {
  EXPECT_EQ(render("{{ [bos_token, 2][0] }} {{ {'a': [1, bos_token]}['a'][1] }} {{ (bos_token, 1)[1] }} {{ (bos_token) | upper }}"),
            "<s> <s> 1 <S>");
  EXPECT_EQ(render("{% for (a, b) in [(1, bos_token)] %}{{ a ~ b }}{% endfor %}{% set (c, d) = (1, bos_token) %}{{ c ~ d }}"), "1<s>1<s>");
  EXPECT_EQ(render("{% set e, f = 1, bos_token %}{{ e ~ f }}{% with (g, h) = (1, bos_token) %}{{ g ~ h }}{% endwith %}"), "1<s>1<s>");
  EXPECT_EQ(
      render(
          "{% set n = namespace(l=[], x='a') %}{% for m in messages %}{% set n.l = n.l + [m.role] %}{% set n.x = n.x if false else 'b' %}"
          "{% endfor %}{{ n.l }}{{ n.x }}"),
      "['user']b");
  EXPECT_EQ(
      render("{% macro f(x, y=[1, 2]) %}{{ x }}{{ y }}{{ caller((x, 3)) }}{% endmacro %}{% call(z) f(bos_token) %}{{ z }}{% endcall %}"),
      "<s>[1, 2]('<s>', 3)");
  EXPECT_EQ(render("{% set x | indent(2, first=true) %}a{% endset %}{{ x }}"), "  a");
  EXPECT_EQ(render("{% if 'user' in [messages[0].role, eos_token] and bos_token.startswith(('<', eos_token)) %}yes{% endif %}"), "yes");
}

TEST(ChatTemplate, LongConversationsAreWellWithinTheBounds) {
  Turns turns;
  for (int i = 0; i < 1000; ++i) {
    turns.emplace_back("user", fmt::format("Question {}? {}", i, repeated("word ", 40)));
    turns.emplace_back("assistant", fmt::format("<think>\nhm\n</think>\n\nAnswer {}. {}", i, repeated("word ", 40)));
  }
  for (const auto& [name, source] : golden_cases().at("templates").items()) {
    EXPECT_NO_THROW(ChatTemplate(files_with(source)).render(chat(turns), true)) << name;
  }
}

}  // namespace
}  // namespace distil_xlstm
