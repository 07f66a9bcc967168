// What is said when a command fails, and what it ends with.
#include "cli/failures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <new>
#include <system_error>

#include "base/error.h"
#include "base/file.h"

namespace distil_xlstm::cli {
namespace {

struct Told {
  int exit_code = 0;
  std::string text;
};

template <typename Exception>
Told told(const Exception& exception, const std::vector<std::string>& arguments = {}) {
  ::testing::internal::CaptureStderr();
  Told result;
  try {
    throw exception;
  } catch (...) {
    result.exit_code = report_failure(arguments);
  }
  result.text = ::testing::internal::GetCapturedStderr();
  return result;
}

TEST(Failures, OurErrorsHaveTheirExitCodes) {
  const Told data = told(DataError("a.json: damaged")), config = told(ConfigError("seed = -1")), signal = told(Interrupted(15, "stopped"));
  EXPECT_EQ(data.text, "distil-xlstm: a.json: damaged\n");
  EXPECT_EQ(data.exit_code, 1);
  EXPECT_EQ(config.exit_code, 2);
  EXPECT_EQ(signal.exit_code, 143);
}

TEST(Failures, MemoryThatRanOutSaysWhatToLower) {
  const Told distill = told(std::bad_alloc(), {"--log-level", "debug", "distill", "--resume"});
  EXPECT_EQ(distill.exit_code, 1);
  EXPECT_THAT(distill.text, ::testing::HasSubstr("distil-xlstm: out of memory: lower train.micro_batch_size or data.context_length"));
  EXPECT_THAT(told(std::bad_alloc(), {"eval"}).text, ::testing::HasSubstr("lower --batch-size or --context-length"));
  EXPECT_THAT(told(std::bad_alloc(), {"inspect"}).text, ::testing::HasSubstr("a machine with more memory"));
}

// As LibTorch 2.11 words it.
TEST(Failures, LibTorchsErrorsLoseTheirTrace) {
  const std::string trace =
      "\nException raised from alloc_cpu at ../c10/core/impl/alloc_cpu.cpp:127 (most recent call first):\nframe #0: x";
  EXPECT_EQ(told(std::runtime_error("mat1 and mat2 shapes cannot be multiplied" + trace)).text,
            "distil-xlstm: mat1 and mat2 shapes cannot be multiplied\n");
  const std::string cpu =
      "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes. Error "
      "code "
      "12 (Cannot allocate memory)";
  EXPECT_EQ(told(std::runtime_error(cpu + trace), {"generate"}).text,
            "distil-xlstm: out of memory (you tried to allocate 400 bytes): lower --max-new-tokens, or give a shorter prompt\n");
  EXPECT_THAT(told(std::runtime_error("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has" + trace), {"synthesize"}).text,
              ::testing::HasSubstr("out of memory (CUDA out of memory. Tried to allocate 20.00 MiB): lower --batch-size"));
}

TEST(Failures, OtherErrorsAreTold) {
  const Told system = told(std::system_error(std::make_error_code(std::errc::permission_denied), "a.txt"));
  EXPECT_EQ(system.exit_code, 1);
  EXPECT_EQ(system.text, "distil-xlstm: a.txt: Permission denied\n");
  const auto denied = std::make_error_code(std::errc::permission_denied);
  EXPECT_EQ(told(fs::filesystem_error("status", "run/run.json", denied)).text, "distil-xlstm: run/run.json: Permission denied\n");
  EXPECT_EQ(told(fs::filesystem_error("rename", "a", "b", denied)).text, "distil-xlstm: a: Permission denied (b)\n");
}

}  // namespace
}  // namespace distil_xlstm::cli
