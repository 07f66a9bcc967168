// The process and what the system does to it: signals, standard streams, mapped files that change. Each in a child.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "base/error.h"
#include "base/file.h"
#include "base/signals.h"
#include "base/standard_streams.h"

namespace distil_xlstm {
namespace {

using ::testing::ExitedWithCode;
using ::testing::KilledBySignal;

class ProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "fast");
    folder_ = fs::temp_directory_path() / fmt::format("distil_xlstm_process_test_{}", ::getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Ends the child after some seconds, whatever it waits for.
  static void limit_time() { ::alarm(10); }

  fs::path folder_;
};

// Reads one byte a page.
int sum_of(std::span<const std::byte> bytes) {
  int sum = 0;
  for (size_t at = 0; at < bytes.size(); at += 4096) sum += static_cast<int>(bytes[at]);
  return sum;
}

TEST_F(ProcessTest, AFileThatIsCutWhileItIsMappedIsNamed) {
  const fs::path path = folder_ / "train-00000.dxts";
  write_file_atomic(path, std::string(1 << 20, 'x'));
  EXPECT_EXIT(
      {
        limit_time();
        MappedFile first(path);
        const MappedFile second = std::move(first);  // what was moved stays guarded
        fs::resize_file(path, 4096);
        std::_Exit(sum_of(second.bytes()) == 0 ? 3 : 4);
      },
      ExitedWithCode(1), "distil-xlstm: .*train-00000.dxts: can no longer be read: it was cut short.*--resume");
}

TEST_F(ProcessTest, OtherBusErrorsEndTheProcessAsBefore) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer has a handler of its own";
#endif
  const fs::path path = folder_ / "a";
  write_file_atomic(path, std::string(1 << 16, 'x'));
  EXPECT_EXIT(
      {
        limit_time();
        {
          const MappedFile closed(path);
        }
        ::raise(SIGBUS);
        ::raise(SIGBUS);
        std::_Exit(0);
      },
      KilledBySignal(SIGBUS), "");
}

TEST_F(ProcessTest, PipesAreNotMappedAndNotWaitedFor) {
  const fs::path path = folder_ / "pipe";
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  limit_time();
  EXPECT_THROW(MappedFile{path}, IoError);
  ::alarm(0);
}

[[noreturn]] void end_with_signal_of_guard(std::initializer_list<int> signals) {
  const SignalGuard guard;
  for (const int signal : signals) ::raise(signal);
  std::_Exit(received_signal());
}

TEST_F(ProcessTest, SignalsAskForAnEnd) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) EXPECT_EXIT(end_with_signal_of_guard({signal}), ExitedWithCode(signal), "");
  EXPECT_EXIT(end_with_signal_of_guard({SIGTERM, SIGHUP, SIGTERM}), ExitedWithCode(SIGTERM), "") << "the first one decides";
  EXPECT_EXIT(end_with_signal_of_guard({SIGHUP, SIGINT}), ExitedWithCode(128 + SIGINT), "") << "at once";
  EXPECT_EXIT(
      {
        {
          const SignalGuard guard;
        }
        ::raise(SIGHUP);
      },
      KilledBySignal(SIGHUP), "");
}

TEST_F(ProcessTest, NohupStaysNohup) {
  EXPECT_EXIT(
      {
        std::signal(SIGHUP, SIG_IGN);
        end_with_signal_of_guard({SIGHUP});
      },
      ExitedWithCode(0), "");
}

TEST_F(ProcessTest, InterruptionsNameTheirSignal) {
  const SignalGuard guard;
  ::raise(SIGHUP);
  try {
    throw_if_interrupted();
    FAIL();
  } catch (const Interrupted& error) {
    EXPECT_STREQ(error.what(), "stopped by SIGHUP");
    EXPECT_EQ(error.exit_code(), 129);
  }
}

// Log lines must not go into a file that got the number of a closed stream.
TEST_F(ProcessTest, ClosedStreamsAreNoPlaceForDataFiles) {
  const fs::path path = folder_ / "data";
  EXPECT_EXIT(
      {
        for (const int descriptor : {0, 1, 2}) ::close(descriptor);
        prepare_standard_streams();
        const int file = ::open(path.c_str(), O_WRONLY | O_CREAT, 0600);
        std::cerr << "a warning" << std::endl;
        std::cout << "a result" << std::endl;
        std::_Exit(file > 2 ? finish_output(0) : 7);
      },
      ExitedWithCode(0), "");
  EXPECT_EQ(fs::file_size(path), 0U);
}

// Opens `path` as standard output and prints `size` bytes. Returns what main would end with.
int print_to(const char* path, size_t size, int exit_code) {
  ::dup2(::open(path, O_WRONLY), STDOUT_FILENO);
  prepare_standard_streams();
  for (size_t i = 0; i < size / 20; ++i) {  // through both libraries
    std::cout << "ten bytes.";
    std::fputs("ten bytes.", stdout);
  }
  return finish_output(exit_code);
}

TEST_F(ProcessTest, OutputThatCannotBeWrittenIsAnError) {
  const char* message = "^distil-xlstm: cannot write standard output: No space left on device\n$";
  EXPECT_EXIT(std::_Exit(print_to("/dev/full", 20, 0)), ExitedWithCode(1), message);
  EXPECT_EXIT(std::_Exit(print_to("/dev/full", 100'000, 0)), ExitedWithCode(1), message);
  EXPECT_EXIT(std::_Exit(print_to("/dev/full", 100'000, 130)), ExitedWithCode(130), message);
  EXPECT_EXIT(std::_Exit(print_to("/dev/full", 0, 0)), ExitedWithCode(0), "^$");
  EXPECT_EXIT(std::_Exit(print_to("/dev/null", 100'000, 0)), ExitedWithCode(0), "^$");
  EXPECT_EXIT(
      {
        ::dup2(::open("/dev/full", O_WRONLY), STDOUT_FILENO);
        prepare_standard_streams();
        std::cout << "a token";
        try {
          check_output();
        } catch (const OutputError& error) {
          std::cerr << error.what();
          std::_Exit(5);
        }
      },
      ExitedWithCode(5), "cannot write standard output: No space left on device");
}

TEST_F(ProcessTest, AClosedPipeEndsTheOutputNotTheWork) {
  EXPECT_EXIT(
      {
        int ends[2];
        if (::pipe(ends) != 0) std::_Exit(9);
        ::close(ends[0]);
        ::dup2(ends[1], STDOUT_FILENO);
        prepare_standard_streams();
        std::cout << "a result" << std::endl;
        std::cerr << "still here";
        std::_Exit(finish_output(0));
      },
      ExitedWithCode(128 + SIGPIPE), "^still here$");
}

}  // namespace
}  // namespace distil_xlstm
