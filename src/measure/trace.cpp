#include "measure/trace.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>
#include <tuple>

#include "base/error.h"
#include "ops/device.h"

namespace distil_xlstm::measure {
namespace {

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

struct Span {
  uint64_t begin = 0, end = 0;
};

struct Event {
  std::string name;
  uint64_t thread = 0;
  Span span;
  double self_seconds = 0.0;  // less what it called on the same thread
};

std::vector<Event> events_on(at::Device device, const std::vector<profiler::KinetoEvent>& all) {
  std::vector<Event> events;
  for (const auto& event : all) {
    if (event.deviceType() != device.type() || event.durationNs() == 0) continue;
    events.push_back(
        {event.name(), event.startThreadId(), {event.startNs(), event.endNs()}, static_cast<double>(event.durationNs()) * 1e-9});
  }
  return events;
}

// Takes from each event the time of those it holds. On a GPU nothing calls another.
void subtract_calls(std::vector<Event>& events) {
  std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) {
    return std::tuple(a.thread, a.span.begin, b.span.end) < std::tuple(b.thread, b.span.begin, a.span.end);
  });
  std::vector<Event*> open;
  for (auto& event : events) {
    while (!open.empty() && (open.back()->thread != event.thread || open.back()->span.end <= event.span.begin)) open.pop_back();
    if (!open.empty()) open.back()->self_seconds -= static_cast<double>(event.span.end - event.span.begin) * 1e-9;
    open.push_back(&event);
  }
}

TraceSummary summarize(std::vector<Event> events) {
  TraceSummary summary;
  std::map<std::string, TraceEntry> by_name;
  for (const auto& event : events) {
    auto& entry = by_name[event.name];
    entry.name = event.name;
    ++entry.calls;
    entry.seconds += event.self_seconds;
  }
  for (auto& [name, entry] : by_name) summary.entries.push_back(std::move(entry));
  std::sort(summary.entries.begin(), summary.entries.end(), [](const auto& a, const auto& b) { return a.seconds > b.seconds; });

  std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.span.begin < b.span.begin; });
  uint64_t covered_until = 0, busy = 0;
  for (const auto& event : events) {
    const uint64_t begin = std::max(event.span.begin, covered_until);
    if (event.span.end > begin) busy += event.span.end - begin;
    covered_until = std::max(covered_until, event.span.end);
  }
  if (!events.empty()) summary.seconds = static_cast<double>(covered_until - events.front().span.begin) * 1e-9;
  summary.busy_seconds = static_cast<double>(busy) * 1e-9;
  return summary;
}

}  // namespace

TraceSummary write_trace(const std::filesystem::path& path, const std::function<void()>& work, at::Device device) {
  if (device.is_cpu()) ::setenv("KINETO_LOG_LEVEL", "5", 0);  // it takes a machine without a GPU for an error
  torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  config.experimental_config.profile_all_threads = device.is_cpu();
  std::set<ActivityType> activities = {ActivityType::CPU};
  if (device.is_cuda()) activities.insert(ActivityType::CUDA);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities, {at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION});
  try {
    work();
    ops::synchronize(device);
  } catch (...) {
    profiler::disableProfiler();
    throw;
  }
  const auto result = profiler::disableProfiler();
  auto events = events_on(device, result->events());
  if (events.empty()) throw DeviceError("the profiler saw nothing on {}: no trace is written", device.str());
  // The profiler itself only logs that it could not write.
  const std::filesystem::path unfinished = path.string() + ".tmp";
  result->save(unfinished.string());
  std::error_code error;
  std::filesystem::rename(unfinished, path, error);
  if (error) {
    const std::string reason = error.message();
    std::filesystem::remove(unfinished, error);
    throw IoError("{}: cannot be written: {}", path.string(), reason);
  }
  if (device.is_cpu()) subtract_calls(events);
  return summarize(std::move(events));
}

}  // namespace distil_xlstm::measure
