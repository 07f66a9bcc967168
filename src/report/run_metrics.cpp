#include "report/run_metrics.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "io/checksums.h"
#include "io/run_files.h"

namespace distil_xlstm::report {
namespace {

void add_record(RunMetrics& run, const json& record, const std::string& where) {
  const auto kind = require<std::string>(record, "kind", where);
  if (kind == "skipped") {
    ++run.num_skipped;
    return;
  }
  if (kind != "train" && kind != "validation") return;
  const auto step = require<double>(record, "step", where);
  auto& table = kind == "train" ? run.train : run.validation;
  // A validation record lies between two training records: its tokens are those seen so far.
  double tokens = 0;
  if (record.contains("tokens") && record["tokens"].is_number()) {
    tokens = record["tokens"].get<double>();
  } else if (const auto seen = run.train.find("loss"); seen != run.train.end() && !seen->second.tokens.empty()) {
    tokens = seen->second.tokens.back();
  }
  for (const auto& [key, value] : record.items()) {
    if (!value.is_number() || key == "step") continue;
    auto& series = table[key];
    series.step.push_back(step);
    series.tokens.push_back(tokens);
    series.y.push_back(value.get<double>());
  }
}

// The newest checkpoint knows what the file was then.
void warn_if_changed(const fs::path& run, std::string_view content) {
  const auto checkpoints = io::list_checkpoints(run);
  if (checkpoints.empty()) return;
  try {
    const auto then = require<json>(io::read_trainer_json(checkpoints.back(), {}), "metrics", "trainer.json");
    const auto size = static_cast<size_t>(require<uint64_t>(then, "metrics_bytes", "trainer.json"));
    const auto checksum = get_or<std::string>(then, "metrics_xxh3", "", "trainer.json");
    if (checksum.empty() || (content.size() >= size && io::xxh3_hex(std::as_bytes(std::span(content.substr(0, size)))) == checksum)) return;
    spdlog::warn("{}: is not what it was at {}: it was cut or changed since; the figures show what is there now",
                 (run / "metrics.jsonl").string(), checkpoints.back().filename().string());
  } catch (const Error& error) {  // a damaged checkpoint: the figures need none
    spdlog::debug("{}", error.what());
  }
}

RunMetrics read_run(const fs::path& path) {
  const fs::path metrics = path / "metrics.jsonl";
  if (!fs::exists(metrics)) throw IoError("{}: no metrics.jsonl there: give a directory that `distill` wrote", path.string());
  RunMetrics run;
  run.path = path;
  if (fs::exists(path / "run.json")) run.description = read_json(path / "run.json");
  const std::string content = read_file(metrics);
  warn_if_changed(path, content);
  size_t begin = 0;
  for (int64_t line = 1; begin < content.size(); ++line) {
    const size_t end = content.find('\n', begin);
    if (end == std::string::npos) break;
    const std::string where = fmt::format("{}:{}", metrics.string(), line);
    const auto text = std::string_view(content).substr(begin, end - begin);
    if (!text.empty()) add_record(run, parse_json(text, where), where);
    begin = end + 1;
  }
  if (run.train.empty() && run.validation.empty()) spdlog::warn("{}: holds no step yet: there is nothing to draw", metrics.string());
  return run;
}

}  // namespace

std::vector<RunMetrics> read_runs(const std::vector<std::string>& paths) {
  std::vector<RunMetrics> runs;
  for (const auto& path : paths) runs.push_back(read_run(fs::path(path).lexically_normal()));
  for (auto& run : runs) {
    const fs::path path = run.path.has_filename() ? run.path : run.path.parent_path();
    run.name = path.filename().string();
    const bool is_shared = std::count_if(runs.begin(), runs.end(), [&](const RunMetrics& other) {
                             const fs::path name = other.path.has_filename() ? other.path : other.path.parent_path();
                             return name.filename() == path.filename();
                           }) > 1;
    if (is_shared) run.name = path.string();
  }
  return runs;
}

}  // namespace distil_xlstm::report
