#include "base/thread_chooser.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>

namespace distil_xlstm {
namespace {

// After so many seconds of steps that take what `step` says of their threads.
int chosen(ThreadChooser& chooser, double seconds, const std::function<double(int)>& step) {
  std::map<int, double> spent;
  for (double at = 0; at < seconds;) {
    const int threads = chooser.threads();
    const double took = step(threads);
    chooser.record(took);
    spent[threads] += took;
    at += took;
  }
  const auto longest = std::ranges::max_element(spent, [](const auto& a, const auto& b) { return a.second < b.second; });
  return longest->first;
}

TEST(ThreadChooser, TakesAsManyThreadsAsPay) {
  const auto bound_by_memory = [](int full) { return [full](int threads) { return 0.02 / std::min(threads, full); }; };
  for (const int max : {1, 2, 3, 8, 64}) {
    for (const int full : {1, 2, 8, 64}) {
      for (const int first : {0, 1, 4, 64}) {
        ThreadChooser chooser(max, first, 2);
        const int found = chosen(chooser, 10, bound_by_memory(full));
        SCOPED_TRACE(fmt::format("{} threads, {} of use, from {}: {}", max, full, first, found));
        EXPECT_LE(found, max);
        EXPECT_GT(2 * found, std::min(max, full));  // halves and doubles are tried
        EXPECT_LT(found, std::max(2 * full, 2));
      }
    }
  }
}

TEST(ThreadChooser, ManyThreadsForLittleWorkAreGivenUpInAFewSteps) {
  ThreadChooser chooser(64, 64, 2);
  EXPECT_EQ(chosen(chooser, 3, [](int threads) { return 2e-4 + 1e-4 * threads; }), 1);
}

TEST(ThreadChooser, FollowsOtherProgramsAsTheyComeAndGo) {
  ThreadChooser chooser(2, 2, 2);
  const auto alone = [](int threads) { return threads == 2 ? 0.011 : 0.02; };
  const auto beside = [](int threads) { return threads == 2 ? 0.022 : 0.02; };  // one of two cores is taken
  EXPECT_EQ(chosen(chooser, 10, alone), 2);
  EXPECT_EQ(chosen(chooser, 10, beside), 1);
  EXPECT_EQ(chosen(chooser, 10, alone), 2);
}

// Long steps that are seldom looked at, as in training.
TEST(ThreadChooser, NoticesAtOnceThatStepsTakeLonger) {
  ThreadChooser chooser(2, 2, 30);
  const auto alone = [](int threads) { return threads == 2 ? 0.05 : 0.1; };
  const auto niced = [](int threads) { return threads == 2 ? 0.105 : 0.1; };
  EXPECT_EQ(chosen(chooser, 5, alone), 2);
  double slow = 0;  // with two threads beside the other program
  for (int i = 0; i < 100; ++i) {
    const int threads = chooser.threads();
    slow += threads == 2 ? niced(2) : 0;
    chooser.record(niced(threads));
  }
  EXPECT_LT(slow, 2.0);
  EXPECT_EQ(chosen(chooser, 100, alone), 2) << "and when it is alone again";
}

TEST(ThreadChooser, ATrialThatIsHopelessTakesOneLongStep) {
  ThreadChooser chooser(2, 2, 30);
  int alone = 0;
  for (int i = 0; i < 1000; ++i) {
    alone += chooser.threads() == 1 ? 1 : 0;
    chooser.record(chooser.threads() == 2 ? 0.05 : 0.1);
  }
  EXPECT_GE(alone, 2);
  EXPECT_LE(alone, 3);  // the search, and a look every 30 of 50 seconds
}

}  // namespace
}  // namespace distil_xlstm
