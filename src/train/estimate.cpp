#include "train/estimate.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "base/text.h"
#include "distill/method.h"
#include "ops/head_loss.h"
#include "ops/packed_matrix.h"

namespace distil_xlstm::train {
namespace {

int64_t activation_bytes(const config::RunConfig& config, const student::StudentShape& s, int64_t compute_bytes) {
  const int64_t tokens = config.train.micro_batch_size * config.data.context_length;
  int64_t all = 0, largest = 0;
  for (const auto& layer : s.kept_values()) {
    const int64_t kept = layer.size_bytes(compute_bytes);
    all += kept;
    largest = std::max(largest, kept);
  }
  // With checkpointing only the blocks' inputs stay, and one block at a time is computed again.
  const bool checkpoints = config.train.checkpointing == config::Checkpointing::blocks;
  return tokens * (checkpoints ? largest + s.num_layers() * s.hidden_size() * compute_bytes : all);
}

// Threads that each take a share of a micro-batch's rows (MicroBatches).
int64_t num_shares(const config::RunConfig& config, bool is_cpu, int64_t num_threads) {
  return is_cpu && config.train.micro_batch_size >= num_threads ? num_threads : 1;
}

// The two logits of a tile for each thread; the gradient replaces the student's. A micro-batch that is shorter than a tile needs less.
int64_t head_tile_bytes(const config::RunConfig& config, const teacher::TeacherShape& t, int64_t teacher_bytes, bool is_cpu,
                        int64_t shares) {
  const auto tile = is_cpu ? ops::head_tile(ops::HeadBackend::cpu, t.vocab_size, 4, shares)
                           : ops::head_tile(ops::HeadBackend::cuda_kernel, t.vocab_size, std::min<int64_t>(teacher_bytes, 4), 1);
  const int64_t positions = std::max<int64_t>(config.train.micro_batch_size / shares, 1) * config.data.context_length;
  return shares * std::min(tile.positions, positions) * tile.position_bytes;
}

std::vector<distill::Stage> stages_of(const config::RunConfig& config) {
  return distill::make_method(config.distill, /*total_steps=*/1000, /*num_epochs=*/4)->stages();
}

// What such a stage takes beyond the whole student's activations and the outputs of the teacher that distillation needs: of every layer,
// the stream and the attention's output (and its queries, keys and values, where matrices are compared), beside the activations of one
// mixer.
int64_t alignment_bytes(const config::RunConfig& config, const teacher::TeacherShape& t, const student::StudentShape& s,
                        bool compares_matrices, int64_t teacher_bytes, int64_t compute_bytes, int64_t sets, int64_t other_bytes) {
  const int64_t tokens = config.train.micro_batch_size * config.data.context_length;
  int64_t largest = 0;
  for (const auto& layer : s.kept_values()) largest = std::max(largest, layer.size_bytes(compute_bytes));
  int64_t bytes = sets * tokens * (2 * t.num_layers + 1) * t.hidden_size * teacher_bytes + tokens * largest;
  if (compares_matrices) bytes += sets * tokens * t.num_layers * (t.num_heads + 2 * t.num_kv_heads) * t.head_dim * teacher_bytes;
  return std::max<int64_t>(bytes - other_bytes, 0);
}

config::RunConfig with_micro_batch(config::RunConfig config, int64_t micro_batch_size) {
  const int64_t rows = config.train.micro_batch_size * config.train.gradient_accumulation_steps;
  config.train.micro_batch_size = micro_batch_size;
  config.train.gradient_accumulation_steps = rows / micro_batch_size;
  return config;
}

}  // namespace

ParameterCounts count_parameters(const teacher::TeacherShape& teacher, const student::StudentShape& student) {
  ParameterCounts counts;
  counts.teacher = teacher.num_parameters;
  counts.trainable = student.num_trainable_parameters();
  counts.embedding = teacher.vocab_size * teacher.hidden_size;
  counts.stored = counts.trainable + (teacher.is_tied ? 1 : 2) * counts.embedding;
  counts.as_paper = counts.trainable + 2 * counts.embedding;
  return counts;
}

std::vector<MemoryItem> estimate_memory(const config::RunConfig& config, const teacher::TeacherShape& teacher,
                                        const student::StudentShape& student, int64_t teacher_bytes, int64_t compute_bytes, bool is_cpu,
                                        int64_t num_threads) {
  if (num_threads < 1) num_threads = at::get_num_threads();
  const int64_t shares = num_shares(config, is_cpu, num_threads);
  const auto counts = count_parameters(teacher, student);
  const int64_t tokens = config.train.micro_batch_size * config.data.context_length;
  const int64_t teacher_width = 6 * teacher.hidden_size + 3 * teacher.intermediate_size;
  std::vector<MemoryItem> items;
  const int64_t frozen = (teacher.is_tied ? 1 : 2) * counts.embedding;
  const int64_t layer_bytes = config.teacher.precision == "fp8" ? 1 : teacher_bytes;
  items.push_back({"teacher weights", frozen * teacher_bytes + (counts.teacher - frozen) * layer_bytes,
                   "the student's embedding and head are among them"});
  items.push_back({"student weights", counts.trainable * 4, "float32"});
  if (compute_bytes < 4)
    items.push_back({"student weights, compute type", shares * counts.trainable * compute_bytes, "copies of the step"});
  items.push_back({"gradients", counts.trainable * 4, "float32"});
  if (shares > 1) {
    items.push_back({"gradients of other threads", (shares - 1) * counts.trainable * 4,
                     fmt::format("float32, {} threads with a share of the rows each", shares)});
  }
  items.push_back({"optimizer", counts.trainable * 8, "two moments of AdamW"});
  items.push_back({"student activations", activation_bytes(config, student, compute_bytes), "estimate, of a micro-batch"});
  constexpr int64_t kWaitingStates = 3;  // of the mean over layers, on a GPU (ops::StateSum)
  items.push_back({"teacher activations", tokens * (teacher_width + (is_cpu ? 0 : kWaitingStates * teacher.hidden_size)) * teacher_bytes,
                   "estimate, one layer at a time"});
  if (!is_cpu && config.train.gradient_accumulation_steps > 1)
    items.push_back({"gradients of a micro-batch", counts.trainable * 4, "float32, before they are added"});
  const int64_t means = config.distill.alignment.kind == config::AlignmentKind::average ? 1 : student.num_layers();
  const int64_t sets = is_cpu ? 1 : 2;
  items.push_back({"teacher outputs", sets * tokens * teacher.hidden_size * (teacher_bytes + 4 * means),
                   sets > 1 ? "of this micro-batch and the next" : "of a micro-batch"});
  const auto stages = stages_of(config);
  if (std::ranges::any_of(stages, &distill::Stage::aligns_layers)) {
    const int64_t others = activation_bytes(config, student, compute_bytes) + items.back().size_bytes;
    const int64_t more = alignment_bytes(config, teacher, student, std::ranges::any_of(stages, &distill::Stage::compares_matrices),
                                         teacher_bytes, compute_bytes, sets, others);
    if (more > 0) items.push_back({"teacher's layers, aligned with", more, "beyond what distillation takes"});
  }
  for (const auto& stage : stages) {
    if (stage.rows_before == 0) continue;
    // With room for the row itself.
    const int64_t tokens_of_state = (stage.rows_before + 1) * config.data.context_length;
    const int64_t row = student.state_bytes(tokens_of_state, compute_bytes < 4 ? at::kBFloat16 : at::kFloat);
    items.push_back({"states that rows start from", 2 * config.train.micro_batch_size * row, "as they were, and in other rows' places"});
  }
  if (is_cpu && ops::PackedMatrix::is_available())
    items.push_back({"packed heads", 2 * counts.embedding * 4, "float32, in the layouts of a CPU's products"});
  if (is_cpu && teacher_bytes < 4) items.push_back({"head in float32", counts.embedding * 4, "of validations"});
  items.push_back({"head tiles", head_tile_bytes(config, teacher, teacher_bytes, is_cpu, shares) + 2 * tokens * teacher.hidden_size * 4,
                   "estimate, never full logits"});
  return items;
}

int64_t total_bytes(const std::vector<MemoryItem>& items) {
  return std::accumulate(items.begin(), items.end(), int64_t{0}, [](int64_t sum, const MemoryItem& item) { return sum + item.size_bytes; });
}

FlopsPerToken count_flops(const teacher::TeacherShape& teacher, const student::StudentShape& student, int64_t context_length) {
  const auto counts = count_parameters(teacher, student);
  const double head = 2.0 * static_cast<double>(counts.embedding);
  const int64_t frozen = (teacher.is_tied ? 1 : 2) * counts.embedding;
  FlopsPerToken flops;
  // Causal attention: scores and values over half the context on average.
  flops.teacher_body =
      2.0 * static_cast<double>(counts.teacher - frozen) +
      2.0 * static_cast<double>(teacher.num_layers * teacher.num_heads * teacher.head_dim) * static_cast<double>(context_length);
  flops.teacher_head = head;
  flops.student_mixer = 6.0 * static_cast<double>(counts.trainable);  // forward, and two products in backward
  flops.student_head = 2.0 * head;                                    // forward and the hidden states' gradient; the head is frozen
  return flops;
}

MemoryAdvice advise_memory(const config::RunConfig& config, const teacher::TeacherShape& teacher, const student::StudentShape& student,
                           int64_t teacher_bytes, int64_t compute_bytes, bool is_cpu, int64_t limit_bytes) {
  const auto need = [&](const config::RunConfig& candidate, int64_t bytes_of_teacher) {
    return total_bytes(estimate_memory(candidate, teacher, student, bytes_of_teacher, compute_bytes, is_cpu));
  };
  if (need(config, teacher_bytes) <= limit_bytes) return {.fits = true, .changes = {}, .why_none = ""};
  const int64_t rows = config.train.micro_batch_size * config.train.gradient_accumulation_steps;
  auto checkpointed = config;
  checkpointed.train.checkpointing = config::Checkpointing::blocks;
  MemoryAdvice advice;
  const auto try_micro_batches = [&](const config::RunConfig& base, int64_t bytes_of_teacher, const std::string& also) {
    for (int64_t micro = base.train.micro_batch_size; micro >= 1; --micro) {
      if (rows % micro != 0) continue;
      const auto candidate = with_micro_batch(base, micro);
      const int64_t bytes = need(candidate, bytes_of_teacher);
      if (bytes > limit_bytes) continue;
      std::string text = also;
      if (micro != base.train.micro_batch_size) {
        text += fmt::format("{}train.micro_batch_size = {} with gradient_accumulation_steps = {} (the same steps)",
                            also.empty() ? "" : ", ", micro, rows / micro);
      }
      advice.changes.push_back(fmt::format("{}: {}", text, format_bytes(static_cast<double>(bytes))));
      return;
    }
  };
  try_micro_batches(config, teacher_bytes, "");
  if (config.train.checkpointing == config::Checkpointing::none)
    try_micro_batches(checkpointed, teacher_bytes, "train.checkpointing = \"blocks\"");
  const bool has_smaller_teacher = teacher_bytes > 2 && !is_cpu;  // most CPUs emulate half precision, and its head is converted anyway
  if (has_smaller_teacher) try_micro_batches(config, 2, "teacher.precision = \"bf16\"");
  if (advice.changes.empty()) {
    checkpointed = with_micro_batch(checkpointed, 1);
    advice.why_none = fmt::format(
        "nothing here makes it fit: even one row at a time, with checkpointing{}, needs {}; take a smaller teacher, or a shorter "
        "data.context_length",
        has_smaller_teacher ? " and the teacher in bf16" : "",
        format_bytes(static_cast<double>(need(checkpointed, has_smaller_teacher ? 2 : teacher_bytes))));
  }
  return advice;
}

}  // namespace distil_xlstm::train
