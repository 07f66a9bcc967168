#include "base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "base/error.h"
#include "base/json.h"

namespace distil_xlstm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("distil_xlstm_file_test_{}", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

template <typename Function>
std::string message_of(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(FileTest, MapsWhatWasWritten) {
  write_file_atomic(folder_ / "a.txt", "hello");
  const MappedFile file(folder_ / "a.txt");
  EXPECT_EQ(file.bytes().size(), 5U);
  EXPECT_EQ(static_cast<char>(file.bytes()[4]), 'o');
  EXPECT_EQ(read_file(folder_ / "a.txt"), "hello");
}

TEST_F(FileTest, MapsAnEmptyFile) {
  write_file_atomic(folder_ / "empty", "");
  EXPECT_TRUE(MappedFile(folder_ / "empty").bytes().empty());
}

TEST_F(FileTest, NamesAMissingFile) {
  EXPECT_THAT(message_of([&] { MappedFile(folder_ / "missing"); }), HasSubstr("missing: cannot open: No such file"));
  EXPECT_THAT(message_of([&] { MappedFile{folder_}; }), HasSubstr("not a regular file"));
  EXPECT_THAT(message_of([&] { read_file(folder_); }), HasSubstr("is a directory"));
}

TEST_F(FileTest, ReplacesAFileWhole) {
  write_file_atomic(folder_ / "a", "old");
  write_file_atomic(folder_ / "a", "new content");
  EXPECT_EQ(read_file(folder_ / "a"), "new content");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(FileTest, DirectoryAppearsOnlyWhenComplete) {
  const fs::path target = folder_ / "checkpoint";
  EXPECT_THROW(write_directory_atomic(target,
                                      [&](const fs::path& staging) {
                                        write_file_atomic(staging / "half", "x");
                                        throw IoError("disk full");
                                      }),
               IoError);
  EXPECT_FALSE(fs::exists(target));
  EXPECT_TRUE(fs::is_empty(folder_));

  write_directory_atomic(target, [](const fs::path& staging) { write_file_atomic(staging / "v", "1"); });
  EXPECT_EQ(read_file(target / "v"), "1");
}

TEST_F(FileTest, FailedReplacementKeepsTheOldDirectory) {
  const fs::path target = folder_ / "checkpoint";
  write_directory_atomic(target, [](const fs::path& staging) { write_file_atomic(staging / "v", "1"); });
  EXPECT_THROW(write_directory_atomic(target, [](const fs::path&) { throw IoError("stop"); }), IoError);
  EXPECT_EQ(read_file(target / "v"), "1");
  write_directory_atomic(target, [](const fs::path& staging) { write_file_atomic(staging / "v", "2"); });
  EXPECT_EQ(read_file(target / "v"), "2");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(FileTest, ExpandsFilesDirectoriesAndGlobs) {
  for (const char* name : {"b.txt", "a.txt", "c.json", "sub/d.txt"}) write_file_atomic(folder_ / name, "x");
  EXPECT_EQ(expand_paths({folder_.string()}).size(), 4U);
  EXPECT_THAT(expand_paths({(folder_ / "*.txt").string()}), ElementsAre(folder_ / "a.txt", folder_ / "b.txt"));
  EXPECT_EQ(expand_paths({(folder_ / "**" / "*.txt").string()}).size(), 3U);
  EXPECT_THAT(message_of([&] { expand_paths({(folder_ / "*.md").string()}); }), HasSubstr("*.md: no such file"));
}

TEST_F(FileTest, GlobsGoThroughDirectories) {
  for (const char* name : {"1.txt", "d1/2.txt", "d1/x/3.txt", "d1/x/y/4.txt", "d2/5.txt", "d[1]/6.txt", ".h/7.txt", "d1/.8.txt"})
    write_file_atomic(folder_ / name, "x");
  const auto found = [&](const std::string& pattern) {
    std::vector<std::string> names;
    for (const fs::path& path : expand_paths({(folder_ / pattern).string()})) names.push_back(path.lexically_relative(folder_));
    return names;
  };
  EXPECT_THAT(found("d1/**"), ElementsAre("d1/2.txt", "d1/x/3.txt", "d1/x/y/4.txt"));
  EXPECT_THAT(found("d1/*/**/*.txt"), ElementsAre("d1/x/3.txt", "d1/x/y/4.txt"));
  EXPECT_THAT(found("d[1]/**/*.txt"), ElementsAre("d1/2.txt", "d1/x/3.txt", "d1/x/y/4.txt", "d[1]/6.txt"));
  EXPECT_THAT(found("d[12]/*.txt"), ElementsAre("d1/2.txt", "d2/5.txt"));
  EXPECT_THAT(found("**/y/?.txt"), ElementsAre("d1/x/y/4.txt"));
  EXPECT_THAT(found(".h/*"), ElementsAre(".h/7.txt"));
  EXPECT_EQ(expand_paths({(folder_ / "d1/2.txt").string(), (folder_ / "d1/*.txt").string(), (folder_ / "d1").string()}).size(), 4U);
}

TEST_F(FileTest, JsonNumbersAreNotBentToFit) {
  const json object = {{"large", 4294967297}, {"part", 1.9}, {"minus", -1}, {"byte", 255}, {"text", "\xFF"}};
  EXPECT_THAT(message_of([&] { require<int32_t>(object, "large", "x.json"); }), HasSubstr("x.json: key 'large' is 4294967297"));
  EXPECT_THAT(message_of([&] { require<int64_t>(object, "part", "x.json"); }), HasSubstr("key 'part' is 1.9"));
  EXPECT_THAT(message_of([&] { require<uint64_t>(object, "minus", "x.json"); }), HasSubstr("key 'minus' is -1"));
  EXPECT_THAT(message_of([&] { get_or(object, "text", 1, "x.json"); }), HasSubstr("key 'text' is"));
  EXPECT_EQ(require<int64_t>(object, "large", "x.json"), 4294967297);
  EXPECT_EQ(require<uint8_t>(object, "byte", "x.json"), 255);
  EXPECT_EQ(require<double>(object, "minus", "x.json"), -1.0);
}

TEST_F(FileTest, JsonErrorsNameFileAndKey) {
  write_file_atomic(folder_ / "broken.json", "{\"a\": 1,");
  EXPECT_THAT(message_of([&] { read_json(folder_ / "broken.json"); }), HasSubstr("broken.json: not JSON at byte"));
  const json object = {{"width", "wide"}};
  EXPECT_THAT(message_of([&] { require<int>(object, "width", "config.json"); }), HasSubstr("config.json: key 'width' is \"wide\""));
  EXPECT_THAT(message_of([&] { require<int>(object, "depth", "config.json"); }), HasSubstr("key 'depth' is missing"));
  EXPECT_EQ(get_or(object, "depth", 3), 3);
}

}  // namespace
}  // namespace distil_xlstm
