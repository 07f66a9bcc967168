// The whole optimizer step of `bench`, as the trainer makes it, on random tokens.
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "distill/objective.h"
#include "measure/bench_parts.h"
#include "measure/device_speed.h"
#include "ops/device.h"
#include "student/student.h"
#include "train/estimate.h"
#include "train/step.h"

namespace distil_xlstm::measure {
namespace {

data::Batch random_batch(const BenchSubject& subject, int64_t rows) {
  const int64_t S = subject.config.data.context_length, size = rows * S;
  const Tensor ids = at::randint(subject.teacher.vocab_size, {size + 1}, at::kInt);
  const auto* first = ids.const_data_ptr<int32_t>();
  data::Batch batch{.num_rows = rows, .context_length = S, .num_targets = size};
  batch.tokens.assign(first, first + size);
  batch.targets.assign(first + 1, first + 1 + size);
  batch.mask.assign(static_cast<size_t>(size), 1);
  batch.is_start.assign(static_cast<size_t>(size), 0);
  for (int64_t row = 0; row < rows; ++row) batch.is_start[static_cast<size_t>(row * S)] = 1;
  return batch;
}

// The first that runs the whole student, as the floor counts it, unless another is named.
size_t stage_called(const std::string& name, const std::vector<distill::Stage>& stages, const std::string& method) {
  const auto found =
      std::ranges::find_if(stages, [&](const distill::Stage& s) { return name.empty() ? !s.aligns_layers : s.name == name; });
  if (found != stages.end()) return static_cast<size_t>(found - stages.begin());
  if (name.empty()) return stages.size() - 1;
  std::vector<std::string> names;
  for (const auto& stage : stages) names.push_back(stage.name);
  throw ConfigError("--stage {}: method {} has {}", name, method,
                    stages.size() > 1 ? fmt::format("{}", fmt::join(names, ", ")) : std::string("one stage"));
}

}  // namespace

std::vector<StepBench> bench_step(const BenchSubject& subject, const std::vector<int64_t>& micro_batch_sizes, const std::string& stage_name,
                                  const std::string& trace_path) {
  const auto& config = subject.config;
  const ops::PriorityStream stream(subject.device);  // as the trainer
  const auto teacher = teacher::random_teacher(subject.teacher_config, subject.device, subject.teacher_precision, subject.device);
  teacher::LiveTeacher source(*teacher);
  const auto student = subject.shape->fresh(
      {.device = subject.device, .embedding_VD = teacher->embedding_weight(), .head_VD = teacher->head_weight(), .teacher = teacher.get()},
      config.seed);
  constexpr int64_t kSteps = 1000;  // of the schedules: what they give in the first step
  const auto method = distill::make_method(config.distill, kSteps, 1);
  const distill::Objective objective(config.distill, teacher->num_layers(), subject.shape->num_layers());
  train::TrainingStep training_step({.config = config,
                                     .teacher = source,
                                     .student = *student,
                                     .method = *method,
                                     .objective = objective,
                                     .compute_dtype = subject.compute_dtype});
  const auto stages = method->stages();
  const size_t stage = stage_called(stage_name, stages, config.distill.method);
  if (stage > 0) training_step.begin_stage(stages[stage]);
  const auto flops = train::count_flops(subject.teacher, *subject.shape, config.data.context_length);

  std::vector<StepBench> results;
  for (const int64_t rows : micro_batch_sizes) {
    const int64_t accumulation = config.train.gradient_accumulation_steps;
    const auto batch = random_batch(subject, rows);
    const std::vector<data::Batch> batches(static_cast<size_t>(accumulation), batch);
    const distill::StepContext context{
        .step = stages[stage].begin_step + 1, .total_steps = kSteps, .epoch = 0, .num_epochs = 1, .stage = stage};
    const auto step = [&] { training_step.run(batches, context, &batch); };  // as within a run: another step follows
    StepBench result{.micro_batch_size = rows, .accumulation_steps = accumulation};
    result.seconds = median_seconds(step, subject.device);
    result.tokens_per_second = static_cast<double>(accumulation * rows * config.data.context_length) / result.seconds;
    if (!stages[stage].aligns_layers) {
      result.floor_tokens_per_second =
          1.0 / (flops.teacher_body / subject.teacher_flops_per_second + (flops.total() - flops.teacher_body) / subject.flops_per_second);
    }
    result.peak_memory_bytes = ops::peak_memory_bytes(subject.device);
    if (!trace_path.empty() && results.empty()) result.trace = write_trace(trace_path, step, subject.device);
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace distil_xlstm::measure
