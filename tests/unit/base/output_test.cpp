// What commands may write to: temporary names, locks, the rule for directories and files.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <optional>
#include <thread>

#include "base/error.h"
#include "base/output_directory.h"
#include "base/output_lock.h"
#include "base/output_stream.h"
#include "base/temporary_path.h"

namespace distil_xlstm {
namespace {

using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class OutputTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::canonical(fs::temp_directory_path()) / fmt::format("distil_xlstm_output_test_{}", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) names.push_back(entry.path().filename().string());
    return names;
  }
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

// A child that runs `work` and is then killed, as by a power cut.
template <typename Work>
void run_and_kill(Work&& work) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    work();
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status));
}

TEST_F(OutputTest, WhatAKilledProcessLeftIsRemovedByTheNext) {
  const fs::path file = folder_ / "page.html", directory = folder_ / "student";
  run_and_kill([&] { (void)new TemporaryPath(file, TemporaryPath::Kind::file); });
  run_and_kill([&] {
    const auto* staging = new TemporaryPath(directory, TemporaryPath::Kind::directory);
    write_file_atomic(staging->path() / "weights", "half");
  });
  EXPECT_EQ(names().size(), 2u);
  write_file_atomic(folder_ / "other", "x");
  EXPECT_EQ(names().size(), 3u) << "they are not of this target";
  write_file_atomic(file, "whole");
  write_directory_atomic(directory, [](const fs::path& staging) { write_file_atomic(staging / "weights", "whole"); });
  EXPECT_THAT(names(), UnorderedElementsAre("other", "page.html", "student"));
  EXPECT_EQ(read_file(directory / "weights"), "whole");
}

TEST_F(OutputTest, WhatAnotherIsWritingStays) {
  const fs::path file = folder_ / "page.html";
  const TemporaryPath mine(file, TemporaryPath::Kind::file), directory(file, TemporaryPath::Kind::directory);
  clear_abandoned(file);
  EXPECT_TRUE(fs::exists(mine.path()) && fs::exists(directory.path()));
  for (const char* name : {"page.html.distil-xlstm-tmp-x-1", "page.html.distil-xlstm-tmp-12", "page.html.distil-xlstm-tmp-12-3x",
                           "page.html.distil-xlstm-tmp--1-3", "page.distil-xlstm-tmp-1-1"}) {
    write_file_atomic(folder_ / name, "a user's");
    clear_abandoned(file);
    EXPECT_TRUE(fs::exists(folder_ / name)) << name;
  }
}

TEST_F(OutputTest, NamesThatUsersWriteStay) {
  fs::create_directories(folder_ / "page.html.old-2024-11");
  write_file_atomic(folder_ / "page.html.tmp-2024-11", "mine");
  EXPECT_FALSE(is_temporary_name("page.html.old-2024-11") || is_temporary_name("page.html.tmp-2024-11"));
  clear_abandoned(folder_ / "page.html");
  EXPECT_THAT(names(), UnorderedElementsAre("page.html.old-2024-11", "page.html.tmp-2024-11"));
  write_file_atomic(folder_ / "page.html", "whole");
  EXPECT_THAT(names(), UnorderedElementsAre("page.html", "page.html.old-2024-11", "page.html.tmp-2024-11"));
}

// A file system without exchange: killed between the two renames.
TEST_F(OutputTest, ADirectorySetAsideComesBack) {
  const fs::path target = folder_ / "student";
  fs::create_directories(folder_ / "student.distil-xlstm-old-1-0");
  fs::create_directories(folder_ / "student.distil-xlstm-tmp-1-1");
  clear_abandoned(target);
  EXPECT_THAT(names(), UnorderedElementsAre("student"));
  fs::create_directories(folder_ / "student.distil-xlstm-old-1-0");
  clear_abandoned(target);
  EXPECT_THAT(names(), UnorderedElementsAre("student"));
}

TEST_F(OutputTest, OfAProcessIdThatIsUsedAgainNothingIsMixedIn) {
  const fs::path target = folder_ / "student";
  const TemporaryPath one(target, TemporaryPath::Kind::directory);
  // Another container's process of our id had the names that come next.
  const std::string name = one.path().string();
  const int number = std::stoi(name.substr(name.rfind('-') + 1));
  for (int next = number + 1; next < number + 3; ++next)
    fs::create_directories(fmt::format("{}.distil-xlstm-tmp-{}-{}", target.string(), ::getpid(), next));
  const TemporaryPath two(target, TemporaryPath::Kind::directory);
  EXPECT_TRUE(fs::is_empty(two.path()));
  EXPECT_THAT(two.path().string(), HasSubstr(fmt::format("-{}", number + 3)));
}

TEST_F(OutputTest, LinksAreFollowedAndStay) {
  fs::create_directories(folder_ / "real");
  write_file_atomic(folder_ / "real" / "page", "old");
  fs::create_symlink("real/page", folder_ / "page");
  fs::create_directory_symlink("real", folder_ / "student");
  write_file_atomic(folder_ / "page", "new");
  EXPECT_EQ(read_file(folder_ / "real" / "page"), "new");
  EXPECT_TRUE(fs::is_symlink(folder_ / "page"));
  write_directory_atomic(folder_ / "student/", [](const fs::path& staging) { write_file_atomic(staging / "v", "1"); });
  EXPECT_TRUE(fs::is_symlink(folder_ / "student"));
  EXPECT_EQ(read_file(folder_ / "real" / "v"), "1");
  EXPECT_FALSE(fs::exists(folder_ / "real" / "page"));
  fs::create_symlink("nowhere", folder_ / "dangling");
  EXPECT_THAT(message_of([&] { write_file_atomic(folder_ / "dangling", "x"); }), HasSubstr("is a link to nowhere, which is not there"));
}

TEST_F(OutputTest, AFileIsNeverReplacedByADirectory) {
  write_file_atomic(folder_ / "notes", "mine");
  EXPECT_THAT(message_of([&] { write_directory_atomic(folder_ / "notes", [](const fs::path&) {}); }), HasSubstr("notes: is no directory"));
  EXPECT_EQ(read_file(folder_ / "notes"), "mine");
  EXPECT_THAT(names(), UnorderedElementsAre("notes"));
}

TEST_F(OutputTest, DevicesAndPipesAreWrittenIntoNotReplaced) {
  const fs::path pipe = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::string received;
  std::thread reader([&] { received = read_file(pipe); });
  write_file_atomic(pipe, "figures");
  reader.join();
  EXPECT_EQ(received, "figures");
  EXPECT_TRUE(fs::is_fifo(pipe));
  ASSERT_TRUE(fs::is_character_file("/dev/full"));
  EXPECT_THAT(message_of([] { write_file_atomic("/dev/full", "x"); }), HasSubstr("/dev/full: writing failed after 0 of 1 bytes: No space"));
}

// What a shell makes of `--json /dev/stdout | ...`, `>(...)` and `>> log`.
TEST_F(OutputTest, DescriptorsAreWrittenIntoNotReplaced) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
  const fs::path pipe = fmt::format("/dev/fd/{}", ends[1]);
  EXPECT_EQ(message_of([&] { check_output_file(pipe, "--json"); }), "no error");
  write_file_atomic(pipe, "figures");
  std::array<char, 16> received{};
  EXPECT_EQ(::read(ends[0], received.data(), received.size()), 7);
  ::close(ends[0]);
  ::close(ends[1]);

  write_file_atomic(folder_ / "log", "earlier\n");
  const int log = ::open((folder_ / "log").c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  ASSERT_GE(log, 0);
  for (const std::string folder : {"/dev/fd", "/proc/self/fd"}) {
    const fs::path place = fmt::format("{}/{}", folder, log);
    EXPECT_TRUE(is_stream(place));
    EXPECT_EQ(message_of([&] { check_output_file(place, "--json", {folder_}); }), "no error");
    write_file_atomic(place, "figures\n");
  }
  fs::create_symlink(fmt::format("/dev/fd/{}", log), folder_ / "link");
  write_file_atomic(folder_ / "link", "more\n");
  EXPECT_EQ(read_file(folder_ / "log"), "earlier\nfigures\nfigures\nmore\n");
  ::close(log);
  EXPECT_FALSE(is_stream(folder_ / "log") || is_stream(folder_) || is_stream(folder_ / "missing") || is_stream(""));
}

TEST_F(OutputTest, OneProcessAtATime) {
  const fs::path run = folder_ / "a" / "run";
  {
    const OutputLock lock(run);
    EXPECT_THAT(message_of([&] { OutputLock second(run); }),
                HasSubstr(fmt::format("run: process {} is writing there: wait until it has ended", ::getpid())));
    EXPECT_THAT(message_of([&] { OutputLock beside(run, OutputLock::Place::beside); }), "no error");
  }
  EXPECT_TRUE(fs::is_empty(folder_)) << "nothing was written: the directories go too";
  run_and_kill([&] { (void)new OutputLock(run); });
  EXPECT_FALSE(fs::is_empty(run));
  {
    const OutputLock lock(run);
    write_file_atomic(run / "v", "1");
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(run), fs::directory_iterator()), 1);
}

TEST_F(OutputTest, ALockIsRemovedByTheOneThatHoldsIt) {
  const fs::path run = folder_ / "run";
  std::optional<OutputLock> first(run);
  fs::rename(run, folder_ / "run-old");
  const OutputLock second(run);
  first.reset();
  EXPECT_THAT(message_of([&] { OutputLock third(run); }), HasSubstr("is writing there"));
}

// The parent of the lock's file is a link to nowhere: it can be neither made nor found.
TEST_F(OutputTest, ALockThatCannotBeMadeIsAnError) {
  fs::create_symlink("nowhere", folder_ / "link");
  EXPECT_NE(message_of([&] { OutputLock lock(folder_ / "link" / "run", OutputLock::Place::beside); }), "no error");
}

TEST_F(OutputTest, ManyThatBeginAtOnceTakeTurns) {
  const fs::path run = folder_ / "run";
  std::atomic<int> inside = 0, most = 0, taken = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 200; ++k) {
        try {
          const OutputLock lock(run);
          most = std::max<int>(most, ++inside);
          ++taken;
          --inside;
        } catch (const ConfigError&) {
          std::this_thread::yield();
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(most, 1);
  EXPECT_GT(taken, 0);
  EXPECT_TRUE(!fs::exists(run) || fs::is_empty(run)) << "no lock is left";
}

const OutputKind kKind = {.name = "result",
                          .is_result = [](const fs::path& directory) { return fs::exists(directory / "mark"); },
                          .is_leftover = [](const fs::path& entry) { return entry.extension() == ".partial"; }};

TEST_F(OutputTest, ADirectoryIsNewEmptyOrAResult) {
  const auto check = [&](const fs::path& path, const std::vector<fs::path>& inputs = {}) {
    return message_of([&] { check_output_directory(path, "--output X", kKind, inputs); });
  };
  EXPECT_EQ(check("").substr(0, 32), "--output X: names no directory: ");
  EXPECT_EQ(check(folder_ / "new" / "below"), "no error");
  EXPECT_EQ(check(folder_), "no error");
  for (const char* name : {".distil-xlstm.lock", "mark.distil-xlstm-tmp-1-2", "a.partial"}) write_file_atomic(folder_ / "out" / name, "");
  EXPECT_EQ(check(folder_ / "out"), "no error");
  EXPECT_EQ(check_output_directory(folder_ / "out", "", kKind), OutputState::empty);
  write_file_atomic(folder_ / "out" / "notes", "mine");
  EXPECT_THAT(check(folder_ / "out"),
              HasSubstr("--output X: holds notes, is not empty and no result: choose a new or an empty directory; nothing"));
  write_file_atomic(folder_ / "out" / "mark", "");
  EXPECT_EQ(check_output_directory(folder_ / "out", "", kKind), OutputState::result);
  EXPECT_THAT(check(folder_ / "out" / "notes"), HasSubstr("is a file"));
  EXPECT_THAT(check(folder_ / "out" / "notes" / "below"), HasSubstr("notes is a file: nothing can be made below it"));
  EXPECT_THAT(check("/"), HasSubstr(::access("/", W_OK) == 0 ? "is not empty and no result" : "cannot be read and written to"));
  fs::create_symlink("nowhere", folder_ / "dangling");
  EXPECT_THAT(check(folder_ / "dangling"), HasSubstr("is a link to nowhere"));

  EXPECT_THAT(check(folder_ / "out", {folder_ / "out"}), HasSubstr("is what the command reads"));
  EXPECT_THAT(check(folder_ / "out" / "shards", {folder_ / "out"}), HasSubstr("lies inside "));
  EXPECT_THAT(check(folder_ / "out", {folder_ / "out" / "notes"}), HasSubstr("notes, which the command reads, lies inside it"));
  const auto beside_model = [&](const fs::path& path, const fs::path& model) {
    return message_of([&] { check_output_directory(path, "--output X", kKind, {}, {model}); });
  };
  EXPECT_EQ(beside_model(folder_ / "out" / "shards", folder_ / "out"), "no error");
  EXPECT_THAT(beside_model(folder_ / "out", folder_ / "out"), HasSubstr("is what the command reads"));
  EXPECT_THAT(beside_model(folder_ / "out", folder_ / "out" / "notes"), HasSubstr("notes, which the command reads, lies inside it"));
  EXPECT_EQ(check(folder_ / "outside", {folder_ / "out", folder_ / "missing", "corpus/*.txt"}), "no error");
  fs::create_directory_symlink("out", folder_ / "link");
  EXPECT_THAT(check(folder_ / "link", {folder_ / "out"}), HasSubstr("is what the command reads"));
  EXPECT_THAT(message_of([] { check_replaceable(".", "--output ."); }), HasSubstr("the current directory is in it"));
  EXPECT_THAT(message_of([] { check_replaceable("/", "--output /"); }), HasSubstr("the current directory is in it"));
  EXPECT_THAT(message_of([] { check_replaceable("/proc", "--output /proc"); }), HasSubstr("is a mount point"));
}

TEST_F(OutputTest, AFileIsNoDirectoryAndNoInput) {
  const auto check = [&](const fs::path& path, const std::vector<fs::path>& inputs = {}) {
    return message_of([&] { check_output_file(path, "--json", inputs); });
  };
  write_file_atomic(folder_ / "a.txt", "text");
  EXPECT_EQ(check(""), "--json \"\": names no file");
  EXPECT_THAT(check(folder_), HasSubstr("is a directory, a file's name is needed"));
  EXPECT_THAT(check(folder_ / "new/"), HasSubstr("is a directory, a file's name is needed"));
  EXPECT_THAT(check(folder_ / "a.txt" / "b"), HasSubstr("a.txt is a file: nothing can be made below it"));
  EXPECT_THAT(check(folder_ / "a.txt", {folder_ / "x", folder_ / "a.txt"}), HasSubstr("is what the command reads"));
  fs::create_symlink("a.txt", folder_ / "link");
  EXPECT_THAT(check(folder_ / "link", {folder_ / "a.txt"}), HasSubstr("is what the command reads"));
  EXPECT_EQ(check(folder_ / "new" / "b", {folder_ / "a.txt"}), "no error");
  for (const char* stream : {"/dev/null", "/dev/full"}) EXPECT_EQ(check(stream), "no error") << stream;
  write_file_atomic(folder_ / "run" / "weights", "w");
  EXPECT_EQ(check(folder_ / "run" / "figures", {folder_ / "run"}), "no error");
  EXPECT_THAT(check(folder_ / "run" / "weights", {folder_ / "run"}), HasSubstr("which the command reads, and is no result of its kind"));
  const auto is_earlier = [](const fs::path& file) { return read_file(file) == "w"; };
  EXPECT_EQ(message_of([&] { check_output_file(folder_ / "run" / "weights", "--json", {folder_ / "run"}, is_earlier); }), "no error");
}

TEST_F(OutputTest, StrangersAreCarriedOver) {
  const fs::path from = folder_ / "from", to = folder_ / "to";
  fs::create_directories(to);
  write_file_atomic(from / "weights", "old");
  write_file_atomic(from / "notes" / "deep" / "a", "mine");
  write_file_atomic(from / "README.md", "mine");
  fs::create_symlink("README.md", from / "link");
  carry_over(from, to, [](const std::string& name) { return name == "weights"; });
  EXPECT_FALSE(fs::exists(to / "weights"));
  EXPECT_EQ(read_file(to / "notes" / "deep" / "a"), "mine");
  EXPECT_TRUE(fs::equivalent(from / "notes" / "deep" / "a", to / "notes" / "deep" / "a")) << "linked, not copied";
  EXPECT_TRUE(fs::is_symlink(to / "link"));
  EXPECT_EQ(read_file(to / "link"), "mine");
}

}  // namespace
}  // namespace distil_xlstm
