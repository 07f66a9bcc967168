#include "measure/device_speed.h"

#include <algorithm>
#include <vector>

#include "base/log.h"
#include "ops/device.h"
#include "ops/fp8.h"

namespace distil_xlstm::measure {
namespace {

int64_t product_size(at::Device device) {
  return device.is_cuda() ? 8192 : 1024;
}

double product_flop(int64_t size) {
  return 2.0 * static_cast<double>(size * size * size);
}

}  // namespace

double product_flops(at::Device device, at::ScalarType dtype) {
  const at::NoGradGuard no_grad;
  const int64_t size = product_size(device);
  // Random values: with constant ones a GPU draws less power and keeps a higher clock than any real product does.
  const Tensor a = at::randn({size, size}, at::TensorOptions(at::kFloat).device(device)).to(dtype);
  Tensor out = at::empty_like(a);
  return product_flop(size) / median_seconds([&] { at::mm_out(out, a, a); }, device);
}

double fp8_product_flops(at::Device device) {
  const at::NoGradGuard no_grad;
  const int64_t size = product_size(device);
  const auto rows = ops::fp8_rows(at::randn({size, size}, at::TensorOptions(at::kFloat).device(device)));
  return product_flop(size) / median_seconds([&] { ops::fp8_linear(rows, rows, {}, at::kBFloat16); }, device);
}

double copy_bytes_per_second(at::Device device) {
  const int64_t size_bytes = device.is_cuda() ? int64_t{1} << 30 : int64_t{1} << 28;
  const auto from = at::ones({size_bytes}, at::TensorOptions(at::kByte).device(device)), to = at::empty_like(from);
  return 2.0 * static_cast<double>(size_bytes) / median_seconds([&] { to.copy_(from); }, device);
}

double median_seconds(const std::function<void()>& call, at::Device device) {
  constexpr double kBlock = 0.02, kAll = 3.0;
  constexpr int64_t kMaxCalls = 1000, kMaxBlocks = 9;
  const auto time_of = [&](int64_t calls) {
    const double begin = monotonic_seconds();
    for (int64_t i = 0; i < calls; ++i) call();
    ops::synchronize(device);
    return (monotonic_seconds() - begin) / static_cast<double>(calls);
  };
  time_of(1);
  const double estimate = std::max(time_of(1), 1e-9);
  const auto calls = std::clamp(static_cast<int64_t>(kBlock / estimate) + 1, int64_t{1}, kMaxCalls);
  const auto blocks = std::clamp(static_cast<int64_t>(kAll / (estimate * static_cast<double>(calls))), int64_t{3}, kMaxBlocks);
  std::vector<double> times;
  for (int64_t block = 0; block < blocks; ++block) times.push_back(time_of(calls));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace distil_xlstm::measure
