#include "measure/bench_parts.h"

#include <gtest/gtest.h>

#include "cli/options/bench.h"

namespace distil_xlstm::measure {
namespace {

// The command line names the parts without LibTorch.
TEST(BenchParts, TheCommandLineKnowsThemAll) {
  EXPECT_EQ(known_part_names(), cli::bench_part_names());
}

}  // namespace
}  // namespace distil_xlstm::measure
