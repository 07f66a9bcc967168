#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>

namespace distil_xlstm::ops {
namespace {

// Compiled without OpenMP, at::parallel_for runs everything on the calling thread, which no result would show.
TEST(ParallelFor, UsesThreadsOfThePool) {
  const int before = at::get_num_threads();
  at::set_num_threads(2);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  at::parallel_for(0, 2, 1, [&](int64_t, int64_t) {
    const std::scoped_lock lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  at::set_num_threads(before);
  EXPECT_EQ(threads.size(), 2U);
}

}  // namespace
}  // namespace distil_xlstm::ops
