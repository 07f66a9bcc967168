// distil-xlstm plan: what a run will need and do, before anything is downloaded or trained.
#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "base/error.h"
#include "base/text.h"
#include "cli/counted.h"
#include "cli/options/plan.h"
#include "commands/compute.h"
#include "data/loader.h"
#include "data/token_shard.h"
#include "distill/method.h"
#include "distill/schedule_table.h"
#include "eval/validation.h"
#include "io/model_files.h"
#include "load/teacher_config.h"
#include "measure/device_speed.h"
#include "ops/device.h"
#include "student/registry.h"
#include "train/estimate.h"
#include "train/setting_checks.h"

namespace distil_xlstm::commands {
namespace {

using Options = cli::PlanOptions;

int64_t parse_bytes(const std::string& text) {
  const std::array<std::pair<std::string_view, double>, 4> units = {
      {{"GiB", 1024.0 * 1024 * 1024}, {"MiB", 1024.0 * 1024}, {"GB", 1e9}, {"MB", 1e6}}};
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  for (const auto& [unit, size] : units) {
    if (number > 0 && std::isfinite(number) && end == unit) return static_cast<int64_t>(number * size);
  }
  throw ValueError("--memory {}: must be a size such as 24GiB, 80GB or 512MiB", text);
}

// Rows of prepared shards that the settings name; 0 when there are none yet.
int64_t rows_of_shards(const config::RunConfig& config) {
  int64_t rows = 0;
  std::vector<std::string> paths;
  if (!config.data.train.empty()) paths.push_back(config.data.train);
  for (const auto& source : config.data.sources) paths.push_back(source.path);
  for (const auto& path : paths) {
    std::vector<fs::path> shards;
    try {
      shards = data::find_shards(path);
    } catch (const IoError&) {
      return 0;  // text that is prepared later, or nothing there
    }
    for (const auto& shard : shards) {
      const data::TokenShard opened(shard, /*verify_content=*/false);
      if (opened.split() == data::Split::train) rows += opened.num_rows();
    }
  }
  return rows;
}

struct Plan {
  config::RunConfig config;
  teacher::TeacherShape teacher;
  std::unique_ptr<student::StudentShape> student;
  at::Device device = at::kCPU;
  at::ScalarType compute_dtype = at::kFloat;
  teacher::Precision teacher_precision;
  int64_t rows = 0;  // of an epoch
  bool rows_are_counted = false;
};

// The run's length as it is set; where the text is not prepared yet, both meanings of "512 M tokens, ten epochs".
std::vector<std::pair<std::string, train::RunLength>> readings(const Plan& p) {
  std::vector<std::pair<std::string, train::RunLength>> all;
  const auto& t = p.config.train;
  const int64_t context_length = p.config.data.context_length;
  const auto tokens = format_count(static_cast<double>(p.rows * context_length));
  const auto length = train::run_length(t, p.rows, context_length);
  if (t.num_epochs > 1 && !p.rows_are_counted) {
    auto in_all = t;
    in_all.num_epochs = 0;
    in_all.max_tokens = p.rows * context_length;
    all.emplace_back(fmt::format("{} tokens in all", tokens),
                     train::run_length(in_all, std::max<int64_t>(p.rows / t.num_epochs, 1), context_length));
    all.emplace_back(fmt::format("{} tokens an epoch, {}", tokens, cli::counted(t.num_epochs, "epoch")), length);
  } else if (t.max_tokens > 0) {
    all.emplace_back(fmt::format("train.max_tokens = {}", t.max_tokens), length);
  } else if (t.max_steps > 0) {
    all.emplace_back(fmt::format("train.max_steps = {}", t.max_steps), length);
  } else {
    all.emplace_back(fmt::format("{} of {} tokens", cli::counted(std::max<int64_t>(t.num_epochs, 1), "epoch"), tokens), length);
  }
  return all;
}

std::string share(int64_t part, int64_t whole) {
  return fmt::format("{:.2f} %", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

// In millions as the paper has it, with three digits at least.
std::string trainable_text(int64_t count) {
  const double millions = static_cast<double>(count) / 1e6;
  return fmt::format("{:.{}f} M", millions, millions >= 1 ? 2 : millions >= 0.1 ? 3 : 4);
}

void print_models(const Plan& p) {
  const auto counts = train::count_parameters(p.teacher, *p.student);
  fmt::print("Teacher    {}, {}, hidden {}, {}, vocabulary {}: {} parameters\n", p.teacher.model_type,
             cli::counted(p.teacher.num_layers, "layer"), p.teacher.hidden_size, cli::counted(p.teacher.num_heads, "head"),
             p.teacher.vocab_size, format_parameters(static_cast<double>(counts.teacher)));
  fmt::print("Student    {}\n", p.student->description());
  fmt::print("  trainable                  {:>10}   blocks and final norm\n", trainable_text(counts.trainable));
  fmt::print("  frozen embedding           {:>10}   {}\n", format_parameters(static_cast<double>(counts.embedding)),
             p.teacher.is_tied ? "also the head: tied in the teacher" : "and as many in the head");
  fmt::print("  stored                     {:>10}   trainable share {}\n", format_parameters(static_cast<double>(counts.stored)),
             share(counts.trainable, counts.stored));
  fmt::print("  as the paper counts        {:>10}   embedding and head apart; trainable share {}\n\n",
             format_parameters(static_cast<double>(counts.as_paper)), share(counts.trainable, counts.as_paper));
}

// "model.layers.*.mlp.down_proj.weight": tensors of several layers under one name.
std::string across_layers(const std::string& name) {
  std::string out;
  for (size_t begin = 0; begin < name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool is_number = !part.empty() && std::ranges::all_of(part, [](unsigned char c) { return std::isdigit(c) != 0; });
    out += (begin > 0 ? "." : "") + (is_number ? "*" : part);
    begin = end + 1;
  }
  return out;
}

std::string rate_text(const distill::Stage& stage, const std::string& group, double run_rate) {
  const auto factor = stage.rates.find(group);
  if (!stage.rates.empty() && factor == stage.rates.end()) return "frozen";
  const double peak = stage.learning_rate > 0.0 ? stage.learning_rate : run_rate;
  return fmt::format("{:.3g}", peak * (stage.rates.empty() ? 1.0 : factor->second));
}

// Every trainable tensor: where it comes from, and at which rate each stage trains it.
void print_parameters(const Plan& p, const std::vector<distill::Stage>& stages) {
  struct Row {
    student::ParameterInfo info;
    int64_t count = 0;
  };
  std::vector<Row> rows;
  for (const auto& info : p.student->parameters()) {
    student::ParameterInfo shown = info;
    shown.name = across_layers(info.name);
    const auto same = std::ranges::find_if(rows, [&](const Row& row) {
      return row.info.name == shown.name && row.info.shape == shown.shape && row.info.start == shown.start;
    });
    if (same != rows.end()) {
      ++same->count;
    } else {
      rows.push_back({shown, 1});
    }
  }
  if (rows.empty()) return;
  size_t name_width = 0, shape_width = 0, start_width = 5;
  const auto shape_of = [](const Row& row) {
    return fmt::format("[{}]{}", fmt::join(row.info.shape, ", "), row.count > 1 ? fmt::format(" x {}", row.count) : "");
  };
  for (const auto& row : rows) {
    name_width = std::max(name_width, row.info.name.size());
    shape_width = std::max(shape_width, shape_of(row).size());
    start_width = std::max(start_width, row.info.start.size());
  }
  fmt::print("Parameters and their learning rates\n  {:<{}} {:<{}} {:<{}}", "name", name_width, "shape", shape_width, "start", start_width);
  for (const auto& stage : stages) fmt::print(" {:>12}", stage.name);
  fmt::print("\n");
  for (const auto& row : rows) {
    fmt::print("  {:<{}} {:<{}} {:<{}}", row.info.name, name_width, shape_of(row), shape_width, row.info.start, start_width);
    for (const auto& stage : stages) fmt::print(" {:>12}", rate_text(stage, row.info.group, p.config.optimizer.learning_rate));
    fmt::print("\n");
  }
  fmt::print("  embedding and head are the teacher's, and frozen\n\n");
}

void print_memory(const Plan& p, const std::string& limit, int64_t limit_bytes) {
  const auto teacher_bytes = static_cast<int64_t>(c10::elementSize(p.teacher_precision.dtype)),
             compute_bytes = static_cast<int64_t>(c10::elementSize(p.compute_dtype));
  const auto items = train::estimate_memory(p.config, p.teacher, *p.student, teacher_bytes, compute_bytes, p.device.is_cpu());
  fmt::print("Memory     teacher {}, compute {}, {} of {} tokens a micro-batch\n", teacher::precision_name(p.teacher_precision),
             ops::precision_name(p.compute_dtype), cli::counted(p.config.train.micro_batch_size, "row"), p.config.data.context_length);
  for (const auto& item : items)
    fmt::print("  {:<30} {:>10}   {}\n", item.name, format_bytes(static_cast<double>(item.size_bytes)), item.note);
  fmt::print("  {:<30} {:>10}\n", "together", format_bytes(static_cast<double>(train::total_bytes(items))));
  if (limit_bytes > 0) {
    const auto advice = train::advise_memory(p.config, p.teacher, *p.student, teacher_bytes, compute_bytes, p.device.is_cpu(), limit_bytes);
    if (advice.fits)
      fmt::print("  fits into {}\n", limit);
    else if (advice.changes.empty())
      fmt::print("  does not fit into {}: {}\n", limit, advice.why_none);
    else
      fmt::print("  does not fit into {}. Any of these does it:\n    {}\n", limit, join(advice.changes, "\n    "));
  }
  fmt::print("\n");
}

void print_schedule(const Plan& p, const train::RunLength& length, const std::vector<distill::Stage>& stages) {
  const auto& optimizer = p.config.optimizer;
  fmt::print("Schedule   {}, {} an epoch{}\n  {:>9} {:>6} {:>7} {:>7} {:>7}\n", p.config.distill.method,
             cli::counted(length.steps_per_epoch, "step"),
             p.rows_are_counted ? ""
                                : fmt::format(" of {} tokens (assumed: no shards yet, see --tokens)",
                                              format_count(static_cast<double>(p.rows * p.config.data.context_length))),
             "step", "epoch", "alpha", "T", "beta");
  for (const auto& row : distill::schedule_table(p.config.distill, length.total_steps, length.steps_per_epoch)) {
    fmt::print("  {:>9} {:>6} {:>7.3f} {:>7.3f} {:>7.3f}   {}\n", row.step, row.epoch + 1, row.plan.alpha, row.plan.temperature,
               row.plan.beta, row.note);
  }
  for (const auto& stage : stages) {
    const bool has_own = stage.end_step > 0;
    const int64_t steps = has_own ? stage.end_step - stage.begin_step : length.total_steps;
    const auto warmup = static_cast<int64_t>(std::ceil(optimizer.warmup_ratio * static_cast<double>(steps)));
    const double peak = stage.learning_rate > 0.0 ? stage.learning_rate : optimizer.learning_rate;
    const bool is_constant = optimizer.schedule == config::LearningRateSchedule::constant;
    const std::string when = has_own ? fmt::format("{}, {} from step {}: ", stage.name, cli::counted(steps, "step"), stage.begin_step) : "";
    fmt::print("  {}learning rate {} after {} of warm-up, then {} to {}\n", when, peak, cli::counted(warmup, "step"),
               config::name_of(optimizer.schedule), is_constant ? peak : peak * optimizer.min_learning_rate_ratio);
    if (!has_own) break;  // one for the whole run
  }
  fmt::print("\n");
}

void print_time(const Plan& p, const Options& options, const std::vector<std::pair<std::string, train::RunLength>>& lengths) {
  const auto flops = train::count_flops(p.teacher, *p.student, p.config.data.context_length);
  const auto flop = [](double count) { return format_count(count) + (count < 999.5 ? " FLOP" : "FLOP"); };
  fmt::print("Arithmetic a token\n  teacher {} (body {}, head {}), student {} (mixer {} forward and backward, frozen head {})\n",
             flop(flops.teacher_body + flops.teacher_head), flop(flops.teacher_body), flop(flops.teacher_head),
             flop(flops.student_mixer + flops.student_head), flop(flops.student_mixer), flop(flops.student_head));
  const bool is_given = options.tflops > 0;
  const double rate = is_given ? options.tflops * 1e12 : measure::product_flops(p.device, p.compute_dtype);
  fmt::print("Time       at {}FLOP/s ({}) at best {} tokens/s\n", format_count(rate),
             is_given ? "as given" : "large matrix products, measured on " + p.device.str(), format_count(rate / flops.total()));
  for (const auto& [name, length] : lengths) {
    fmt::print("  {:<38} at least {}\n", name, format_duration(static_cast<double>(length.total_tokens) * flops.total() / rate));
  }
}

data::Batch first_rows(const config::RunConfig& config) {
  data::LoaderOptions options{.split = "train", .context_length = config.data.context_length, .shuffle = false, .verify_checksums = false};
  for (const auto& source : config.data.sources) options.sources.push_back({source.path, source.weight});
  if (options.sources.empty()) options.sources.push_back({config.data.train, 1.0});
  options.document_isolation = config.data.document_isolation;
  data::Loader loader(options);
  data::Batch batch;
  loader.begin_epoch(0);
  loader.next(batch);
  return batch;
}

// What fp8 does to the teacher's predictions on the first rows of text, where weights and shards are there.
void print_fp8(const Plan& p) {
  const bool has_weights = fs::path(p.config.teacher.model).extension() != ".json";
  if (!p.rows_are_counted || !has_weights) {
    fmt::print("Teacher in fp8: what it does to the predictions is measured where {} are there\n\n",
               has_weights ? "the run's shards" : "the teacher's weights, not only its config.json,");
    return;
  }
  const auto teacher = teacher::load_teacher(io::open_model(p.config.teacher.model), p.device, p.teacher_precision.dtype);
  const auto batch = nn::to_device(first_rows(p.config), p.device);
  fmt::print("Teacher in fp8: {}\n\n",
             teacher::description(teacher::use_fp8_products(*teacher, batch.tokens_BS, batch.is_start_BS, batch.mask_BS)));
}

}  // namespace

void run_plan(const cli::PlanOptions& options) {
  const int64_t limit_bytes = options.memory.empty() ? 0 : parse_bytes(options.memory);
  Plan p;
  const auto loaded = options.run.load();
  train::check_names(loaded);
  train::warn_of_ignored_keys(loaded);
  p.config = loaded.run;
  p.teacher = load::read_teacher_shape(p.config.teacher.model);
  p.student = student::derive_shape(p.config.student, p.teacher, p.config.data.context_length);
  train::check_stages(p.config, *p.student);
  p.device = ops::parse_device(p.config.train.device);
  p.compute_dtype = ops::parse_precision(p.config.train.precision, p.device);
  p.teacher_precision = teacher::parse_precision(p.config.teacher.precision, p.device);
  p.rows = options.tokens.empty() ? rows_of_shards(p.config) : 0;
  p.rows_are_counted = p.rows > 0;
  if (!p.rows_are_counted)
    p.rows = std::max<int64_t>(parse_count(options.tokens.empty() ? "512M" : options.tokens, "--tokens") / p.config.data.context_length, 1);

  const auto lengths = readings(p);
  const auto& last = lengths.back().second;
  const auto stages = distill::make_method(p.config.distill, last.total_steps, last.num_epochs, last.steps_per_epoch)->stages();
  print_models(p);
  print_parameters(p, stages);
  print_memory(p, options.memory, limit_bytes);
  if (p.teacher_precision.has_fp8_products) print_fp8(p);
  const int64_t rows = p.config.train.micro_batch_size * p.config.train.gradient_accumulation_steps;
  fmt::print("Steps      {} tokens each ({} of {})\n", rows * p.config.data.context_length, cli::counted(rows, "row"),
             p.config.data.context_length);
  for (const auto& [name, length] : lengths) {
    fmt::print("  {:<38} {:>15}, {} tokens\n", name, cli::counted(length.total_steps, "step"),
               format_count(static_cast<double>(length.total_tokens)));
  }
  fmt::print("\n");
  print_schedule(p, last, stages);
  print_time(p, options, lengths);
}

}  // namespace distil_xlstm::commands
