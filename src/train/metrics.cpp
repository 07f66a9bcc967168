#include "train/metrics.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <span>
#include <string_view>

#include "base/error.h"
#include "base/log.h"
#include "io/checksums.h"

namespace distil_xlstm::train {
namespace {

constexpr const char* kMetricsName = "metrics.jsonl";

using FileId = std::pair<uint64_t, uint64_t>;

// Device and number of a file or directory: {0, 0} where there is none.
FileId id_of(const fs::path& path) {
  struct stat info{};
  if (::stat(path.c_str(), &info) != 0) return {};
  return {info.st_dev, info.st_ino};
}

int64_t size_of(const fs::path& path) {
  std::error_code error;
  const auto size = fs::file_size(path, error);
  return error ? 0 : static_cast<int64_t>(size);
}

void cut_file(const fs::path& path, int64_t size) {
  std::error_code error;
  if (size_of(path) > size) fs::resize_file(path, static_cast<uintmax_t>(size), error);
  if (error) throw IoError("{}: cannot be cut to {} bytes: {}", path.string(), size, error.message());
}

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

// Kind and step of a record; nullopt for a line that is none.
std::optional<std::pair<std::string, int64_t>> key_of(std::string_view line) {
  try {
    const json record = parse_json(line, kMetricsName);
    if (!record.is_object()) return std::nullopt;
    return std::pair(require<std::string>(record, "kind", kMetricsName), require<int64_t>(record, "step", kMetricsName));
  } catch (const DataError&) {
    return std::nullopt;
  }
}

struct WholeRecords {
  std::string text;
  int64_t count = 0;
};

// The records up to a step, once each (a step may be skipped more than once).
WholeRecords whole_records(std::string_view text, int64_t last_step) {
  WholeRecords whole;
  std::set<std::pair<std::string, int64_t>> seen;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    const auto key = key_of(line);
    if (!key || key->second > last_step || (key->first != "skipped" && !seen.insert(*key).second)) continue;
    whole.text.append(line).push_back('\n');
    ++whole.count;
  }
  return whole;
}

// Where the damaged file goes: what an earlier damage left there stays.
fs::path name_for_damaged(const fs::path& path) {
  const std::string name = path.string() + ".damaged";
  fs::path free = name;
  for (int number = 2; fs::exists(fs::symlink_status(free)); ++number) free = fmt::format("{}-{}", name, number);
  return free;
}

void mend_records(const fs::path& path, const std::string& text, const MetricsPosition& position, int64_t step) {
  const WholeRecords whole = whole_records(text, step);
  const fs::path damaged = name_for_damaged(path);
  const std::string wanted = position.metrics_records < 0 ? "" : fmt::format(" of {}", position.metrics_records);
  std::string kept;
  if (fs::exists(path)) {
    fs::rename(path, damaged);
    kept = fmt::format(", the file as it was is {} now", damaged.string());
  }
  write_file_atomic(path, whole.text);
  spdlog::warn(
      "{}: is not what it was at the checkpoint of step {}: it was cut, changed or removed since. {}{} records are kept; figures and "
      "reports lack the others{}",
      path.string(), step, whole.count, wanted, kept);
}

void restore_records(const fs::path& path, const MetricsPosition& position, int64_t step) {
  const std::string text = fs::exists(path) ? read_file(path) : "";
  const auto size = static_cast<size_t>(position.metrics_bytes);
  const bool is_whole = text.size() >= size && (position.metrics_xxh3.empty() ||
                                                io::xxh3_hex(bytes_of(std::string_view(text).substr(0, size))) == position.metrics_xxh3);
  if (is_whole) return cut_file(path, position.metrics_bytes);
  mend_records(path, text, position, step);
}

}  // namespace

json MetricsPosition::to_json() const {
  return {{"metrics_bytes", metrics_bytes},
          {"metrics_records", metrics_records},
          {"metrics_xxh3", metrics_xxh3},
          {"events_name", events_name},
          {"events_bytes", events_bytes}};
}

MetricsPosition MetricsPosition::from_json(const json& value, const std::string& where) {
  MetricsPosition position{.metrics_bytes = require<int64_t>(value, "metrics_bytes", where),
                           .metrics_records = get_or<int64_t>(value, "metrics_records", -1, where),
                           .metrics_xxh3 = get_or<std::string>(value, "metrics_xxh3", "", where),
                           .events_name = require<std::string>(value, "events_name", where),
                           .events_bytes = require<int64_t>(value, "events_bytes", where)};
  const bool is_plain_name = fs::path(position.events_name).filename() == position.events_name;
  if (position.metrics_bytes < 0 || position.events_bytes < 0 || !is_plain_name)
    throw DataError("{}: metrics positions make no sense", where);
  return position;
}

MetricsLog::MetricsLog(const fs::path& run_directory) : directory_(run_directory), events_name_(event_file_name()) {
  open();
}

MetricsLog::MetricsLog(const fs::path& run_directory, const MetricsPosition& position, int64_t step)
    : directory_(run_directory), events_name_(position.events_name) {
  restore_records(directory_ / kMetricsName, position, step);
  const fs::path events = directory_ / events_name_;
  if (size_of(events) >= position.events_bytes) {
    cut_file(events, position.events_bytes);
  } else {
    events_name_ = event_file_name();
    for (int i = 1; fs::exists(directory_ / events_name_); ++i) events_name_ = fmt::format("{}.{}", event_file_name(), i);
    spdlog::warn("{}: {} bytes, the checkpoint knew {}: TensorBoard's records go on in {}", events.string(), size_of(events),
                 position.events_bytes, events_name_);
  }
  open();
}

void MetricsLog::open() {
  const fs::path path = directory_ / kMetricsName;
  const std::string before = fs::exists(path) ? read_file(path) : "";
  hash_ = std::make_unique<Xxh3Stream>();
  hash_->update(bytes_of(before));
  num_bytes_ = static_cast<int64_t>(before.size());
  num_records_ = std::count(before.begin(), before.end(), '\n');
  lines_ = std::ofstream(path, std::ios::binary | std::ios::app);
  if (!lines_) throw IoError("{}: cannot be opened for writing", path.string());
  events_ = std::make_unique<EventWriter>(directory_ / events_name_);
  directory_id_ = id_of(directory_);
  lines_id_ = id_of(path);
}

void MetricsLog::check_in_place() const {
  if (id_of(directory_) == directory_id_) return;
  throw IoError(
      "{}: the run's directory was removed, renamed or replaced while it was trained: nothing more can be saved. Where it was "
      "renamed, go on with: distil-xlstm distill --resume --output NEW_NAME",
      directory_.string());
}

void MetricsLog::write(const std::string& kind, int64_t step, const json& values) {
  json record = {{"kind", kind}, {"step", step}};
  std::vector<std::pair<std::string, double>> scalars;
  for (const auto& [key, value] : values.items()) {
    const bool is_finite = !value.is_number_float() || std::isfinite(value.get<double>());
    record[key] = is_finite ? value : json(nullptr);
    if (value.is_number() && is_finite) scalars.emplace_back(fmt::format("{}/{}", kind, key), value.get<double>());
  }
  check_in_place();
  const fs::path path = directory_ / kMetricsName;
  if (id_of(path) != lines_id_) {
    spdlog::warn("{}: was removed or replaced: its records up to here are lost, it is begun again", path.string());
    open();
  }
  const std::string line = record.dump() + "\n";
  lines_ << line;
  lines_.flush();
  if (!lines_) throw IoError("{}: write failed: is the disk full?", path.string());
  hash_->update(bytes_of(line));
  num_bytes_ += static_cast<int64_t>(line.size());
  ++num_records_;
  events_->write_scalars(step, scalars);
}

MetricsPosition MetricsLog::position() const {
  return {.metrics_bytes = num_bytes_,
          .metrics_records = num_records_,
          .metrics_xxh3 = fmt::format("{:016x}", hash_->digest()),
          .events_name = events_name_,
          .events_bytes = size_of(directory_ / events_name_)};
}

}  // namespace distil_xlstm::train
