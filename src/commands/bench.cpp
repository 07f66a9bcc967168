// distil-xlstm bench: how fast the parts of a training step and the step itself are here, against their floors, and how exact.
#include <ATen/Parallel.h>

#include <algorithm>
#include <fstream>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/options/bench.h"
#include "commands/compute.h"
#include "load/teacher_config.h"
#include "measure/bench_parts.h"
#include "measure/device_speed.h"
#include "ops/device.h"
#include "train/setting_checks.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::BenchOptions;

// Geometries that need no file.
const std::vector<std::pair<std::string, const char*>>& known_geometries() {
  static const std::vector<std::pair<std::string, const char*>> all = {
      {"qwen2.5-1.5b", R"({"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
         "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
         "tie_word_embeddings": true, "max_position_embeddings": 32768, "hidden_act": "silu"})"},
      {"smollm2-135m", R"({"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
         "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
         "tie_word_embeddings": true, "max_position_embeddings": 8192, "hidden_act": "silu"})"},
  };
  return all;
}

json geometry(const std::string& name) {
  for (const auto& [known, text] : known_geometries()) {
    if (name == known) return parse_json(text, known);
  }
  return load::read_teacher_config(name);
}

// Settings of the run that is measured: without a run file, the paper's student, at a size that suits the device.
config::RunConfig load_config(cli::RunOptions options) {
  const bool is_default = options.file.empty() && options.preset.empty();
  if (is_default) options.preset = "paper";
  const auto loaded = options.load();
  train::check_names(loaded);
  auto config = loaded.run;
  const auto is_given = [&](const std::string& key) {
    const auto found = loaded.sources.find(key);
    return found != loaded.sources.end() && !found->second.starts_with("preset");
  };
  const bool is_cpu = ops::parse_device(config.train.device).is_cpu();
  if (config.teacher.model.empty()) config.teacher.model = is_cpu ? "smollm2-135m" : "qwen2.5-1.5b";
  if (is_default && !is_given("train.precision")) config.train.precision = "auto";
  if (is_default && is_cpu && !is_given("train.micro_batch_size")) config.train.micro_batch_size = 2;
  if (is_default && is_cpu && !is_given("train.gradient_accumulation_steps")) config.train.gradient_accumulation_steps = 1;
  if (is_default && is_cpu && !is_given("data.context_length")) config.data.context_length = 256;
  return config;
}

// As /proc/cpuinfo names it.
std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const auto colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown model";
}

std::string milliseconds(const std::optional<double>& seconds) {
  return seconds ? fmt::format("{:.3f}", *seconds * 1e3) : "";
}

json number_or_null(const std::optional<double>& value, double factor = 1.0) {
  return value ? json(*value * factor) : json();
}

void print_part(const measure::PartResult& part) {
  const double seconds = part.both_seconds.value_or(part.forward_seconds.value_or(0.0));
  fmt::print("{:<16} {:<50} {:>10} {:>10} {:>10} {:>7.2f} {:>9}\n", part.name, part.shape, milliseconds(part.forward_seconds),
             milliseconds(part.both_seconds), milliseconds(part.floor_seconds), seconds / part.floor_seconds,
             part.error ? fmt::format("{:.1e}", *part.error) : "");
  std::fflush(stdout);
}

json to_json(const measure::PartResult& part) {
  return {{"name", part.name},
          {"shape", part.shape},
          {"forward_ms", number_or_null(part.forward_seconds, 1e3)},
          {"forward_backward_ms", number_or_null(part.both_seconds, 1e3)},
          {"floor_ms", part.floor_seconds * 1e3},
          {"relative_error", number_or_null(part.error)}};
}

json to_json(const measure::StepBench& step) {
  return {{"micro_batch_size", step.micro_batch_size},
          {"gradient_accumulation_steps", step.accumulation_steps},
          {"step_ms", step.seconds * 1e3},
          {"tokens_per_second", step.tokens_per_second},
          {"floor_tokens_per_second", number_or_null(step.floor_tokens_per_second)},
          {"peak_memory_bytes", step.peak_memory_bytes > 0 ? json(step.peak_memory_bytes) : json()}};
}

void print_trace(const measure::TraceSummary& trace) {
  constexpr size_t kShown = 25, kNameWidth = 96;
  fmt::print("  {:.3f} ms from the first start to the last end, {:.3f} ms of them busy ({:.0f} %)\n", trace.seconds * 1e3,
             trace.busy_seconds * 1e3, 100.0 * trace.busy_seconds / trace.seconds);
  double total = 0.0;  // of all threads together
  for (const auto& entry : trace.entries) total += entry.seconds;
  fmt::print("  {:>10} {:>7} {:>6}  {}\n", "ms", "share", "calls", "what");
  for (size_t i = 0; i < std::min(kShown, trace.entries.size()); ++i) {
    const auto& entry = trace.entries[i];
    fmt::print("  {:>10.3f} {:>5.1f} % {:>6}  {}\n", entry.seconds * 1e3, 100.0 * entry.seconds / total, entry.calls,
               entry.name.substr(0, kNameWidth));
  }
  if (trace.entries.size() > kShown) fmt::print("  and {} more in the trace\n", trace.entries.size() - kShown);
}

json bench_steps(const measure::BenchSubject& subject, const Options& options) {
  std::vector<int64_t> rows = options.step_rows;
  if (rows.empty()) rows = {subject.config.train.micro_batch_size};
  std::sort(rows.begin(), rows.end());  // the peak memory of the process only grows
  json all = json::array();
  fmt::print("\n");
  for (const auto& step : measure::bench_step(subject, rows, options.stage, options.trace_path)) {
    const auto floor = step.floor_tokens_per_second;
    fmt::print("step             {} x {} x {}: {:.1f} ms, {} tokens/s{}{}\n", step.accumulation_steps, step.micro_batch_size,
               subject.config.data.context_length, step.seconds * 1e3, format_count(step.tokens_per_second),
               floor ? fmt::format(", at best {} ({:.0f} %)", format_count(*floor), 100.0 * step.tokens_per_second / *floor) : "",
               step.peak_memory_bytes > 0 ? ", peak " + format_bytes(static_cast<double>(step.peak_memory_bytes)) : "");
    if (step.trace) print_trace(*step.trace);
    all.push_back(to_json(step));
  }
  return all;
}

// Before minutes of measuring.
void check_step_options(const Options& options) {
  const bool has_step = options.parts.empty() || std::ranges::find(options.parts, "step") != options.parts.end();
  if (!options.stage.empty() && !has_step) throw ConfigError("--stage {}: a stage has steps: name the part step, or none", options.stage);
  if (options.trace_path.empty()) return;
  if (!has_step) throw ConfigError("--trace {}: a trace is of a step: name the part step, or none", options.trace_path);
  const fs::path folder = fs::absolute(options.trace_path).parent_path();
  if (!fs::is_directory(folder)) throw IoError("--trace {}: {} is no directory", options.trace_path, folder.string());
  if (fs::is_directory(options.trace_path) || !fs::path(options.trace_path).has_filename())
    throw IoError("--trace {}: is a directory: name a file", options.trace_path);
}

measure::BenchSubject make_subject(const Options& options) {
  measure::BenchSubject subject;
  subject.config = load_config(options.run);
  subject.teacher_config = geometry(subject.config.teacher.model);
  subject.teacher = teacher::teacher_shape(subject.teacher_config);
  subject.shape = student::derive_shape(subject.config.student, subject.teacher, subject.config.data.context_length);
  if (subject.shape->kind() == "paper") subject.student = student::paper_config(*subject.shape);
  for (const auto& name : options.parts) {
    if (!measure::has_bench_part(subject, name))
      throw ConfigError("bench: part {}: no block of this student runs it{}", name,
                        name == "convolution" ? " at an mLSTM block's width, at which it is measured" : "");
  }
  subject.device = ops::parse_device(subject.config.train.device);
  subject.compute_dtype = ops::parse_precision(subject.config.train.precision, subject.device);
  subject.teacher_precision = teacher::parse_precision(subject.config.teacher.precision, subject.device);
  subject.flops_per_second = measure::product_flops(subject.device, subject.compute_dtype);
  subject.teacher_flops_per_second = subject.teacher_precision.has_fp8_products ? measure::fp8_product_flops(subject.device)
                                     : subject.teacher_precision.dtype == subject.compute_dtype
                                         ? subject.flops_per_second
                                         : measure::product_flops(subject.device, subject.teacher_precision.dtype);
  subject.bytes_per_second = measure::copy_bytes_per_second(subject.device);
  return subject;
}

}  // namespace

void run_bench(const cli::BenchOptions& options) {
  check_step_options(options);
  const auto subject = make_subject(options);
  const std::string device = subject.device.is_cpu()
                                 ? fmt::format("cpu ({}), {} threads, {}", cpu_model(), at::get_num_threads(), at::get_cpu_capability())
                                 : fmt::format("{} ({})", subject.device.str(), ops::load_cuda().detail);
  fmt::print("{}; {}; products {}FLOP/s, copies {}B/s\n", device, ops::precision_name(subject.compute_dtype),
             format_count(subject.flops_per_second), format_count(subject.bytes_per_second));
  fmt::print("teacher {} in {}, student of {} blocks, context {}\n", subject.config.teacher.model,
             teacher::precision_name(subject.teacher_precision), subject.shape->num_layers(), subject.config.data.context_length);
  const auto is_wanted = [&](const std::string& name) {
    return options.parts.empty() || std::find(options.parts.begin(), options.parts.end(), name) != options.parts.end();
  };
  json results = {{"version", DISTIL_XLSTM_VERSION},
                  {"device", device},
                  {"precision", ops::precision_name(subject.compute_dtype)},
                  {"teacher", subject.config.teacher.model},
                  {"teacher_precision", teacher::precision_name(subject.teacher_precision)},
                  {"context_length", subject.config.data.context_length},
                  {"product_flops_per_second", subject.flops_per_second},
                  {"copy_bytes_per_second", subject.bytes_per_second}};
  results["steps"] = is_wanted("step") ? bench_steps(subject, options) : json::array();
  results["parts"] = json::array();
  bool has_header = false;
  for (const auto& name : measure::known_part_names()) {
    if (name == "step" || !is_wanted(name) || !measure::has_bench_part(subject, name)) continue;
    if (!has_header)
      fmt::print("\n{:<16} {:<50} {:>10} {:>10} {:>10} {:>7} {:>9}\n", "part", "shape", "forward ms", "both ms", "floor ms", "x floor",
                 "error");
    has_header = true;
    const auto part = measure::bench_part(subject, name);
    print_part(part);
    results["parts"].push_back(to_json(part));
  }
  if (!options.json_path.empty()) write_json(options.json_path, results);
}

}  // namespace distil_xlstm::commands
