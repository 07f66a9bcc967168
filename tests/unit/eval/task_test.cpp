// Tasks: their files, their items, and how these are encoded.
#include "eval/task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"
#include "eval/task_items.h"
#include "support/source_directory.h"
#include "unit/tokenizer/tokenizer_testing.h"

namespace distil_xlstm::eval {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kChoices = R"(
output_type = "multiple_choice"
metrics = ["acc", "acc_norm"]
data = ["rows*"]
[[form]]
context = "{{question}}"
choices = "{{options|tojson}}"
answer = "{{label}}"
[[form]]
context = "{{q}}"
choices = ["{{a}}", "{{b}}"]
answer = "{{right}}"
)";

class TaskTest : public ::testing::Test {
 protected:
  fs::path file(const std::string& name, const std::string& content) {
    fs::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name) << content;
    return folder_ / name;
  }
  std::vector<TaskItem> items(const std::string& task, const std::string& rows, const std::string& name = "rows.jsonl", int64_t limit = 0) {
    return read_items(parse_task(task, "t", "t.toml"), {file(name, rows)}, limit);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path folder_ = fs::temp_directory_path() / fmt::format("distil-xlstm-tasks-{}", ::getpid());
};

Task only_task(const std::string& name) {
  auto tasks = load_tasks({name});
  return std::move(tasks.front());
}

std::string config_error(const std::string& text) {
  return message_of([&] { parse_task(text, "t", "t.toml"); });
}

TEST_F(TaskTest, TakesTheFormThatTheRowsHave) {
  const auto first = items(kChoices, R"({"question": "Q", "options": ["x", "yé"], "label": 1, "more": 0})"
                                     "\n");
  ASSERT_EQ(first.size(), 1U);
  EXPECT_EQ(first[0].requests[1].context, "Q");
  EXPECT_EQ(first[0].requests[1].continuation, " yé");
  EXPECT_THAT(first[0].choices, ElementsAre("x", "yé"));
  EXPECT_EQ(first[0].answer, 1);
  const auto second = items(kChoices, R"({"q": "Q", "a": "x", "b": "y", "right": "y"})"
                                      "\n");
  EXPECT_EQ(second[0].answer, 1) << "by the text of the choice";
}

TEST_F(TaskTest, ContextsMayDifferInPlaceOfTheContinuation) {
  const auto winogrande = only_task("winogrande");
  const auto found =
      read_items(winogrande,
                 {file("w.jsonl", R"({"sentence": "A sees B, so _ runs off _ now. ", "option1": "A", "option2": "B", "answer": "2"})"
                                  "\n")},
                 0);
  EXPECT_EQ(found[0].requests[0].context, "A sees B, so A");
  EXPECT_EQ(found[0].requests[1].context, "A sees B, so B");
  EXPECT_EQ(found[0].requests[1].continuation, " runs off _ now.");
  EXPECT_EQ(found[0].answer, 1);
}

TEST_F(TaskTest, HellaswagIsCleanedOfItsMarks) {
  const auto task = only_task("hellaswag");
  const auto found =
      read_items(task,
                 {file("h.jsonl", R"({"activity_label": "Baking", "ctx_a": "[header] Bake [title] A cake", "ctx_b": "the Dog", )"
                                  R"("endings": [" eats [step] it", "b"], "label": "0"})"
                                  "\n")},
                 0);
  EXPECT_EQ(found[0].requests[0].context, "Baking: Bake. A cake The dog");
  EXPECT_EQ(found[0].requests[0].continuation, " eats it");
}

// Data sets as other harnesses keep them.
TEST_F(TaskTest, OtherFormsOfRowsGiveTheSamePrompts) {
  const auto hellaswag =
      read_items(only_task("hellaswag"),
                 {file("h.jsonl", R"({"id": 0, "ctx": "Baking: Bake [title] A cake. the Dog", "label": 1, "endings": ["a", "[x]b "]})"
                                  "\n")},
                 0);
  EXPECT_EQ(hellaswag[0].requests[1].context, "Baking: Bake. A cake. the Dog") << "in the case that it has there";
  EXPECT_EQ(hellaswag[0].requests[1].continuation, " b");
  EXPECT_EQ(hellaswag[0].answer, 1);
  const auto siqa = read_items(
      only_task("siqa"),
      {file("s.jsonl",
            R"({"query": "Context: A ran.\nQuestion: Why?\nChoices:\nA. to win\nB. for fun\nAnswer:", "choices": ["A", "B"], "gold": 1})"
            "\n")},
      0);
  ASSERT_EQ(siqa[0].requests.size(), 2U);
  EXPECT_EQ(siqa[0].requests[0].context, "Q: A ran. Why?\nA:");
  EXPECT_EQ(siqa[0].requests[0].continuation, " to win");
  EXPECT_EQ(siqa[0].requests[1].continuation, " for fun");
  EXPECT_EQ(siqa[0].answer, 1);
}

TEST_F(TaskTest, WikitextPagesBeginAtHeadingsOfTheFirstLevel) {
  const std::string text = " \n = One = \n \n a , b 's 5 @,@ 000 . \n = = Part = = \n c \n = Two = \n d ( e ) \n";
  EXPECT_THAT(split_pages(text), ElementsAre(" = One = \n \n a , b 's 5 @,@ 000 . \n = = Part = = \n c ", " = Two = \n d ( e ) \n"));
  const auto pages = read_items(only_task("wikitext-2"), {file("wiki.test.raw", text)}, 0);
  ASSERT_EQ(pages.size(), 2U);
  EXPECT_EQ(pages[0].requests[0].continuation, " = One =\n\na, b's 5,000.\n== Part ==\nc ");
  EXPECT_EQ(pages[0].num_words, 19);
  EXPECT_EQ(pages[1].requests[0].continuation, " = Two =\nd (e)\n");
  EXPECT_EQ(pages[1].num_bytes, 20);
}

TEST_F(TaskTest, FindsDataByTheFirstPatternThatHasSome) {
  auto task = parse_task(kChoices, "t", "t.toml");
  task.data = {"none*", "t/**/rows*", "rows*"};
  task.source = "the shelf";
  EXPECT_THAT(message_of([&] { (void)task.find_data(folder_); }), HasSubstr("task t: no data in "));
  EXPECT_THAT(message_of([&] { (void)task.find_data(folder_); }), HasSubstr("The data: the shelf."));
  file("rows.jsonl", "");
  EXPECT_THAT(task.find_data(folder_), ElementsAre(folder_ / "rows.jsonl"));
  file("t/a/rows-1.parquet", "");
  file("t/a/rows-0.jsonl.zst", "");
  file("t/a/rows.md", "");
  EXPECT_THAT(task.find_data(folder_), ElementsAre(folder_ / "t/a/rows-0.jsonl.zst", folder_ / "t/a/rows-1.parquet"));
}

TEST_F(TaskTest, NamesWhatIsWrongWithARow) {
  const auto error_of = [&](const std::string& rows) { return message_of([&] { items(kChoices, rows); }); };
  EXPECT_THAT(error_of("{\"q\": 1, \"a\": 2}\n"),
              HasSubstr("rows.jsonl: row 1: key 'b' is missing: task t reads label, options, question; or a, b, q, "
                        "right; the row has q, a"));
  const std::string good = "{\"q\": 1, \"a\": 2, \"b\": 3, \"right\": 0}\n";
  EXPECT_THAT(error_of(good + "{\"q\": 1, \"a\": 2, \"right\": 0}\n"), HasSubstr("rows.jsonl: line 2: key 'b' is missing"));
  EXPECT_THAT(error_of("{\"q\": 1, \"a\": 2, \"b\": 3, \"right\": -1}\n"), HasSubstr("rows.jsonl: line 1: the answer '-1' is no choice"));
  EXPECT_THAT(error_of("{\"question\": 1, \"options\": [1], \"label\": 0}\n"),
              HasSubstr("rows.jsonl: line 1: what should be a list of texts is [1]"));
  EXPECT_THAT(error_of("{\"question\": 1, \"options\": [\"a\"], \"label\": 0}\n"), HasSubstr("rows.jsonl: line 1: 1 choices"));
  EXPECT_THAT(error_of(""), HasSubstr("rows.jsonl: row 1: key "));
}

TEST_F(TaskTest, NamesWhatIsWrongWithATaskFile) {
  const std::string text = kChoices;
  const auto with = [&](const std::string& old, const std::string& now) {
    std::string changed = text;
    return config_error(changed.replace(changed.find(old), old.size(), now));
  };
  EXPECT_THAT(config_error("output_type = "), HasSubstr("t.toml:1:"));
  EXPECT_THAT(with("multiple_choice", "choice"), HasSubstr("output_type = \"choice\": must be one of multiple_choice, loglikelihood, "));
  EXPECT_THAT(with("\"acc\",", "\"f1\","),
              HasSubstr("t.toml: metrics: 'f1' is none of multiple_choice: known are acc, acc_norm, acc_bytes"));
  EXPECT_THAT(with("metrics", "metric"), HasSubstr("t.toml: unknown key 'metric' (did you mean 'metrics'?)"));
  EXPECT_THAT(with("data = [\"rows*\"]", ""), HasSubstr("t.toml: 'data' is missing"));
  EXPECT_THAT(with("answer", "gold"), HasSubstr("t.toml: form 1: unknown key 'gold'"));
  EXPECT_THAT(with("answer = \"{{label}}\"", ""), HasSubstr("t.toml: form 1: 'answer' is missing"));
  EXPECT_THAT(with("context = \"{{q}}\"", ""), HasSubstr("t.toml: form 2: needs 'context' and 'choices', or 'contexts'"));
  EXPECT_THAT(with("{{question}}", "{{question"), HasSubstr("t.toml: form 1: context: line 1: "));
  EXPECT_THAT(with("choices = \"{{options|tojson}}\"", "choices = 3"), HasSubstr("t.toml: form 1: choices = 3: must be a list of texts"));
  EXPECT_THAT(config_error("output_type = \"loglikelihood\"\nmetrics = [\"acc\"]\ndata = [\"x\"]\n"), HasSubstr("[[form]] is missing"));
}

TEST_F(TaskTest, KnowsItsOwnTasksAndAnyFile) {
  for (const auto& entry : fs::directory_iterator(source_directory() / "share/tasks")) {
    const auto task = only_task(entry.path().stem().string());
    EXPECT_FALSE(task.source.empty()) << task.name;
    EXPECT_TRUE(task.folder.empty());
  }
  EXPECT_EQ(only_task("siqa").name, "social_iqa");
  EXPECT_EQ(only_task("piqa").primary_metric(), "acc_norm");
  EXPECT_THAT(message_of([] { load_tasks({"piqua"}); }),
              HasSubstr("--tasks: no task is named 'piqua' (did you mean 'piqa'?): known are arc_challenge, "));
  EXPECT_THAT(message_of([] { load_tasks({"piqa", "piqa"}); }), HasSubstr("--tasks: 'piqa' is named twice"));
  const auto own = only_task(file("own.toml", kChoices).string());
  EXPECT_EQ(own.name, "own");
  EXPECT_EQ(own.folder, folder_);
}

// The golden tokenizer, with BOS put before every text or not.
class EncodeTest : public ::testing::Test {
 protected:
  static std::vector<std::string> pieces(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
    std::vector<std::string> all;
    for (const int32_t id : ids) all.push_back(tokenizer.decode(std::span(&id, 1)));
    return all;
  }
  static EncodedItems encoded(const std::string& output_type, std::vector<TextRequest> requests, int64_t max_length = 100) {
    Task task;
    task.output_type = output_type == "rolling" ? OutputType::loglikelihood_rolling : OutputType::multiple_choice;
    const TaskItem item{.place = "x.jsonl: line 1", .requests = std::move(requests), .choices = {}, .group = ""};
    return encode_items(task, std::span(&item, 1), tokenizer(), tokenizer().vocab_size(), max_length);
  }
  static const Tokenizer& tokenizer() {
    static const Tokenizer golden(golden_files());
    return golden;
  }
};

TEST_F(EncodeTest, ContinuationsAreWhatTheWholeAddsToTheContext) {
  const auto whole = tokenizer().encode("Once upon a time", true), context = tokenizer().encode("Once upon", true);
  for (const TextRequest& request : {TextRequest{"Once upon", " a time"}, {"Once upon ", "a time"}}) {
    const auto found = encoded("choices", {request}).requests.front();
    EXPECT_EQ(found.context, context);
    EXPECT_EQ(found.continuation, (std::vector<int32_t>{whole.begin() + static_cast<ptrdiff_t>(context.size()), whole.end()}));
  }
}

TEST_F(EncodeTest, AnEmptyContextIsBos) {
  const auto plain = tokenizer().encode(" a time");
  const auto found = encoded("choices", {{"", " a time"}}).requests.front();
  EXPECT_THAT(found.context, ElementsAre(*tokenizer().bos_id()));
  EXPECT_EQ(found.continuation, plain);
  const auto with_bos = encoded("choices", {{"", "<s> a time"}}).requests.front();
  EXPECT_THAT(with_bos.context, ElementsAre(*tokenizer().bos_id()));
  EXPECT_EQ(with_bos.continuation.front() == *tokenizer().bos_id(), false);
}

TEST_F(EncodeTest, RollingWindowsScoreEveryTokenOnceWithAsMuchBeforeItAsFits) {
  const auto tokens = tokenizer().encode("Once upon a time there was a little dog who lived in a big house", true);
  for (const int64_t max_length : {1, 4, 5, 1000}) {
    const auto found = encoded("rolling", {{"", "Once upon a time there was a little dog who lived in a big house"}}, max_length);
    std::vector<int32_t> scored;
    for (const auto& window : found.requests) {
      const bool is_first = scored.empty();
      EXPECT_EQ(window.context.size() + window.continuation.size() - 1,
                static_cast<size_t>(std::min<int64_t>(max_length, static_cast<int64_t>(tokens.size()))));
      if (is_first) {
        EXPECT_THAT(window.context, ElementsAre(*tokenizer().bos_id()));
      }
      scored.insert(scored.end(), window.continuation.begin(), window.continuation.end());
    }
    EXPECT_EQ(scored, tokens);
    EXPECT_EQ(found.num_tokens.front(), static_cast<int64_t>(tokens.size()));
  }
}

TEST_F(EncodeTest, TellsARowWhoseContinuationIsNoToken) {
  EXPECT_THAT(message_of([] { encoded("choices", {{"Once", ""}}); }),
              HasSubstr("x.jsonl: line 1: '' behind 'Once' is no token of its own"));
}

}  // namespace
}  // namespace distil_xlstm::eval
