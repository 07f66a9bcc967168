// Where the time of some work goes: what ran, for how long, as LibTorch's profiler saw it.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "ops/tensor.h"

namespace distil_xlstm::measure {

struct TraceEntry {
  std::string name;
  int64_t calls = 0;
  double seconds = 0.0;
};

struct TraceSummary {
  double seconds = 0.0;             // from the first start to the last end of what ran on the device
  double busy_seconds = 0.0;        // of them, those in which something ran; less than `seconds` where the device waits for work
  std::vector<TraceEntry> entries;  // the longest first
};

// Runs `work` once under the profiler and writes a trace in Chrome's format (chrome://tracing, Perfetto). On a GPU the entries are kernels
// and copies there; on a CPU operators, each without what it called. Throws IoError where the file cannot be written, DeviceError where the
// profiler saw nothing on the device; the file is then as it was.
TraceSummary write_trace(const std::filesystem::path& path, const std::function<void()>& work, at::Device device);

}  // namespace distil_xlstm::measure
