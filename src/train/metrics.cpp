#include "train/metrics.h"

#include <cmath>

#include "base/error.h"
#include "base/log.h"

namespace distil_xlstm::train {
namespace {

constexpr const char* kMetricsName = "metrics.jsonl";

int64_t size_of(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

// A file that is shorter than it was at the checkpoint lost its end: what is left stays as it is.
void truncate_file(const fs::path& path, int64_t size) {
  if (size_of(path) < size) {
    spdlog::warn("{}: {} bytes, the checkpoint knew {}: older records are missing", path.string(), size_of(path), size);
    return;
  }
  std::error_code error;
  if (size_of(path) > size) fs::resize_file(path, static_cast<uintmax_t>(size), error);
  if (error) throw IoError("{}: cannot be cut to {} bytes: {}", path.string(), size, error.message());
}

}  // namespace

json MetricsPosition::to_json() const {
  return {{"metrics_bytes", metrics_bytes}, {"events_name", events_name}, {"events_bytes", events_bytes}};
}

MetricsPosition MetricsPosition::from_json(const json& value, const std::string& where) {
  MetricsPosition position{require<int64_t>(value, "metrics_bytes", where), require<std::string>(value, "events_name", where),
                           require<int64_t>(value, "events_bytes", where)};
  const bool is_plain_name = fs::path(position.events_name).filename() == position.events_name;
  if (position.metrics_bytes < 0 || position.events_bytes < 0 || !is_plain_name)
    throw DataError("{}: metrics positions make no sense", where);
  return position;
}

MetricsLog::MetricsLog(const fs::path& run_directory) : directory_(run_directory), events_name_(event_file_name()) {
  open();
}

MetricsLog::MetricsLog(const fs::path& run_directory, const MetricsPosition& position)
    : directory_(run_directory), events_name_(position.events_name) {
  truncate_file(directory_ / kMetricsName, position.metrics_bytes);
  truncate_file(directory_ / events_name_, position.events_bytes);
  open();
}

void MetricsLog::open() {
  lines_.open(directory_ / kMetricsName, std::ios::binary | std::ios::app);
  if (!lines_) throw IoError("{}: cannot be opened for writing", (directory_ / kMetricsName).string());
  events_ = std::make_unique<EventWriter>(directory_ / events_name_);
}

void MetricsLog::write(const std::string& kind, int64_t step, const json& values) {
  json record = {{"kind", kind}, {"step", step}};
  std::vector<std::pair<std::string, double>> scalars;
  for (const auto& [key, value] : values.items()) {
    const bool is_finite = !value.is_number_float() || std::isfinite(value.get<double>());
    record[key] = is_finite ? value : json(nullptr);
    if (value.is_number() && is_finite) scalars.emplace_back(fmt::format("{}/{}", kind, key), value.get<double>());
  }
  lines_ << record.dump() << '\n';
  lines_.flush();
  if (!lines_) throw IoError("{}: write failed: is the disk full?", (directory_ / kMetricsName).string());
  events_->write_scalars(step, scalars);
}

MetricsPosition MetricsLog::position() const {
  return {size_of(directory_ / kMetricsName), events_name_, size_of(directory_ / events_name_)};
}

}  // namespace distil_xlstm::train
