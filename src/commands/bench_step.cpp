// The whole optimizer step of `bench`, as the trainer makes it, on random tokens.
#include <cmath>

#include "commands/bench_parts.h"
#include "commands/device_speed.h"
#include "distill/alignment.h"
#include "distill/method.h"
#include "ops/device.h"
#include "optim/adamw.h"
#include "student/student.h"
#include "train/estimate.h"
#include "train/micro_batch.h"

namespace distil_xlstm::commands {
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

}  // namespace

std::vector<StepBench> bench_step(const BenchSubject& subject, const std::vector<int64_t>& micro_batch_sizes,
                                  const std::string& trace_path) {
  const auto& config = subject.config;
  const ops::PriorityStream stream(subject.device);  // as the trainer
  const auto teacher = teacher::random_teacher(subject.teacher_config, subject.device, subject.teacher_precision, subject.device);
  const auto student = subject.shape->fresh(
      {.device = subject.device, .embedding_VD = teacher->embedding_weight(), .head_VD = teacher->head_weight()}, config.seed);
  const distill::Alignment alignment(config.distill.alignment, teacher->num_layers(), subject.shape->num_layers());
  train::MicroBatches micro_batches(*teacher, *student, alignment);
  const auto& parameters = student->parameters();
  optim::AdamW optimizer(parameters, {.weight_decay = config.optimizer.weight_decay}, student::decays_of(*student));
  optim::LossScaler scaler(subject.compute_dtype == at::kHalf, config.optimizer.initial_loss_scale);
  constexpr int64_t kSteps = 1000;  // of the schedules: what they give in the first step
  const auto method = distill::make_method(config.distill, kSteps, 1);
  const auto flops = train::count_flops(subject.teacher, *subject.shape, config.data.context_length);

  std::vector<StepBench> results;
  for (const int64_t rows : micro_batch_sizes) {
    const int64_t accumulation = config.train.gradient_accumulation_steps;
    const auto batch = random_batch(subject, rows);
    const std::vector<data::Batch> batches(static_cast<size_t>(accumulation), batch);
    train::GradientSettings settings;
    settings.plan = method->plan({.step = 0, .total_steps = kSteps, .epoch = 0, .num_epochs = 1});
    settings.measures_alignment = settings.plan.alignment_weight != 0.0;
    settings.student.compute_dtype = subject.compute_dtype;
    settings.student.collect_layers = settings.measures_alignment && alignment.needs_blocks();
    settings.student.activation_checkpointing = config.train.checkpointing == config::Checkpointing::blocks;
    const train::NextBatch next{&batch, settings.measures_alignment};
    const auto step = [&] {
      settings.target_scale = scaler.scale() / static_cast<double>(accumulation * batch.num_targets);
      settings.row_scale = scaler.scale() * settings.plan.alignment_weight / static_cast<double>(accumulation * rows);
      const train::LossSums sums = micro_batches.run(batches, settings, &next);  // as within a run: another step follows
      const double norm = optim::grad_norm(parameters).item<double>() / scaler.scale();
      sums.head.to(at::kCPU);  // the trainer reads its losses here
      const double divisor = optim::grad_divisor(norm, scaler.scale(), config.optimizer.max_grad_norm);
      scaler.update(!std::isfinite(norm));
      if (std::isfinite(norm)) optimizer.step(config.optimizer.learning_rate, divisor);
      optimizer.zero_grad();
    };
    StepBench result{.micro_batch_size = rows, .accumulation_steps = accumulation};
    result.seconds = median_seconds(step, subject.device);
    result.tokens_per_second = static_cast<double>(accumulation * rows * config.data.context_length) / result.seconds;
    result.floor_tokens_per_second =
        1.0 / (flops.teacher_body / subject.teacher_flops_per_second + (flops.total() - flops.teacher_body) / subject.flops_per_second);
    result.peak_memory_bytes = ops::peak_memory_bytes(subject.device);
    if (!trace_path.empty() && results.empty()) result.trace = write_trace(trace_path, step, subject.device);
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace distil_xlstm::commands
