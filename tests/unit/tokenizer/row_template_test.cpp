#include "tokenizer/row_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tokenizer_testing.h"

namespace distil_xlstm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string rendered(const std::string& source, const json& row) {
  return RowTemplate(source, "context").render(row, "rows.jsonl: line 3");
}

TEST(RowTemplate, NamesTheKeysThatItReads) {
  const auto keys = [](const std::string& source) { return RowTemplate(source, "context").keys(); };
  EXPECT_THAT(keys("Question: {{goal}} {{goal}}\n{{choices.text[0]}}"), ElementsAre("choices", "goal"));
  EXPECT_THAT(keys("{% for c in choices %}{{c[1:]}}{{loop.index0}}{% endfor %}{% set a = b %}{{a[:2]}}"), ElementsAre("b", "choices"));
  // A value that is cut, with any of its ends left out.
  EXPECT_THAT(keys("{{a[:-1]}}{{b.strip()[1:]}}{{(c ~ d)[1:n]}}{{e[:]}}{{f[::2]}}{{ {'x': g}['x'] }}"),
              ElementsAre("a", "b", "c", "d", "e", "f", "g", "n"));
  EXPECT_THAT(keys("no key, {{ range(3)|list }}"), ElementsAre());
}

TEST(RowTemplate, KeepsWhiteSpaceAndWritesAsPythonDoes) {
  EXPECT_EQ(rendered("{{a}}\nAnswer:\n", {{"a", 1}}), "1\nAnswer:\n");
  EXPECT_EQ(rendered("  {% if true %}\n x{% endif %}", json::object()), "  \n x");
  EXPECT_EQ(rendered("{{a}} {{b}} {{c}}", {{"a", true}, {"b", nullptr}, {"c", 0.5}}), "True None 0.5");
  EXPECT_EQ(rendered("{{text.split(' ')[:-1]|join(' ')}}|{{text.split(' ')[-1]}}", {{"text", "a  b c"}}), "a  b|c");
  EXPECT_EQ(rendered("{{ text.capitalize() }} {{ text[:1].lower() }}{{ text[1:] }}", {{"text", "éTÉ"}}), "Été éTÉ");
  EXPECT_EQ(rendered("{{ {'cause': 'because'}[kind] }}", {{"kind", "cause"}}), "because");
}

TEST(RowTemplate, ReplacesByRegularExpressionsOfPython) {
  const json row = {{"text", "a [title] b [x [y] z] c"}};
  EXPECT_EQ(rendered("{{ text|regex_replace('\\\\[.*?\\\\]', '') }}", row), "a  b  z] c");
  EXPECT_EQ(rendered("{{ text|regex_replace('([a-c]) (.)', '\\\\2\\\\1\\\\9-') }}", row), "[a-title] [b-x [y] z] c");
  EXPECT_EQ(rendered("{{ '( é )'|regex_replace('\\\\(\\\\s*([^)]*?)\\\\s*\\\\)', '(\\\\1)') }}", row), "(é)");
  EXPECT_THAT(message_of([&] { rendered("{{ text|regex_replace('(', '') }}", row); }), HasSubstr("regex_replace: '('"));
}

TEST(RowTemplate, TellsWhatIsWrongWithItsPlace) {
  EXPECT_THAT(message_of([] { RowTemplate("{{ a", "piqa.toml: context"); }), HasSubstr("piqa.toml: context: line 1: "));
  EXPECT_THAT(message_of([] { rendered("{{ a }}", json::object()); }), HasSubstr("rows.jsonl: line 3: context: line 1: undefined value"));
  EXPECT_THAT(message_of([] { rendered("{{ a.b }}", {{"a", json::object()}}); }),
              HasSubstr("rows.jsonl: line 3: context: line 1: undefined value"));
}

}  // namespace
}  // namespace distil_xlstm
