#include "data/record_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "data_testing.h"
#include "support/source_directory.h"

namespace distil_xlstm::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RecordReaderTest : public ::testing::Test {
 protected:
  fs::path file(const std::string& name, const std::string& content) {
    const fs::path path = folder_ / name;
    std::ofstream(path) << content;
    return path;
  }
  static std::vector<json> rows(const fs::path& path, const std::vector<std::string>& keys) {
    const auto records = open_records(path);
    std::vector<json> all;
    for (json row; records->next(keys, row);) all.push_back(row);
    return all;
  }
  std::string error_of(const fs::path& path, const std::vector<std::string>& keys) {
    try {
      rows(path, keys);
    } catch (const DataError& error) {
      return error.what();
    }
    return "<no exception>";
  }
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path folder_ = fs::temp_directory_path() / fmt::format("distil-xlstm-records-{}", ::getpid());
};

TEST_F(RecordReaderTest, GivesTheKeysOfLinesAndOfOneArray) {
  const auto lines = file("a.jsonl", "\n{\"a\": 1, \"b\": [\"x\"], \"c\": null}\n\n{\"b\": [], \"a\": \"y\"}\n");
  EXPECT_THAT(rows(lines, {"b", "a"}), ElementsAre(json({{"b", {"x"}}, {"a", 1}}), json({{"b", json::array()}, {"a", "y"}})));
  const auto records = open_records(lines);
  EXPECT_TRUE(records->has_key("c"));
  EXPECT_FALSE(records->has_key("d"));
  EXPECT_THAT(records->first_keys(), ElementsAre("a", "b", "c"));
  const auto array = file("a.json", "[{\"a\": 1},\n {\"a\": {\"b\": 2}}]");
  EXPECT_THAT(rows(array, {"a"}), ElementsAre(json({{"a", 1}}), json({{"a", {{"b", 2}}}})));
  EXPECT_TRUE(rows(file("empty.jsonl", ""), {"a"}).empty());
}

TEST_F(RecordReaderTest, NamesFileRowAndKey) {
  EXPECT_THAT(error_of(file("a.jsonl", "{\"a\": 1}\n\n{\"b\": 1}\n"), {"a"}), HasSubstr("a.jsonl: line 3: key 'a' is missing"));
  EXPECT_THAT(error_of(file("b.jsonl", "{\"a\": 1}\n{\"a\": \n"), {"a"}), HasSubstr("b.jsonl: line 2: not JSON"));
  EXPECT_THAT(error_of(file("c.jsonl", "{\"a\": 1}\n[1]\n"), {"a"}), HasSubstr("c.jsonl: line 2: not a JSON object"));
  EXPECT_THAT(error_of(file("d.json", "[{\"a\": 1}, 7]"), {"a"}), HasSubstr("d.json: element 2: not a JSON object"));
  EXPECT_THAT(error_of(file("e.json", "[{\"a\": 1},"), {"a"}), HasSubstr("e.json: a JSON array that does not end"));
  EXPECT_THAT(error_of(file("f.parquet", "no such thing"), {"a"}), HasSubstr("f.parquet: "));
}

TEST_F(RecordReaderTest, GivesColumnsOfEveryTypeOfParquet) {
  const auto strings = rows(golden_directory() / "strings.parquet", {"number", "dictionary"});
  EXPECT_THAT(strings, ElementsAre(json({{"number", 1}, {"dictionary", "a"}}), json({{"number", 2}, {"dictionary", "bé"}}),
                                   json({{"number", 3}, {"dictionary", "a"}})));
  const auto messages = rows(golden_directory() / "messages.parquet", {"messages"});
  ASSERT_EQ(messages.size(), 3U);
  EXPECT_EQ(messages[0]["messages"][1]["tool_calls"][0]["arguments"]["x"], 1);
  EXPECT_TRUE(messages[2]["messages"].is_null());
  const auto records = open_records(golden_directory() / "documents.parquet");  // several row groups
  EXPECT_TRUE(records->has_key("score"));
  EXPECT_FALSE(records->has_key("scores"));
  json row;
  for (int i = 0; i < 9; ++i) ASSERT_TRUE(records->next({"text", "score"}, row));
  EXPECT_EQ(row, json({{"text", "document 8 café"}, {"score", 0.8}}));
  EXPECT_THAT(records->place(), HasSubstr("documents.parquet: row 9"));
  EXPECT_THAT(error_of(golden_directory() / "strings.parquet", {"goal"}), HasSubstr("strings.parquet: column 'goal' is missing"));
}

}  // namespace
}  // namespace distil_xlstm::data
