#include "distill/alignment.h"

#include <fmt/ranges.h>

#include "base/error.h"
#include "distill/settings_check.h"

namespace distil_xlstm::distill {
namespace {

// Square root whose gradient at 0 is 0: states that already agree must not give NaN.
Tensor safe_sqrt(const Tensor& x) {
  const Tensor positive = x > 0;
  return x.where(positive, at::ones({}, x.options())).sqrt().where(positive, at::zeros({}, x.options()));
}

// Sum over rows (or the whole batch's value times the rows) of one pair of states, in float32 or float64.
Tensor pair_loss(const config::AlignmentSettings& settings, const Tensor& student_BSD, const Tensor& teacher_BSD,
                 const Tensor& is_masked_BS) {
  if (student_BSD.sizes() != teacher_BSD.sizes() || student_BSD.size(0) != is_masked_BS.size(0) ||
      student_BSD.size(1) != is_masked_BS.size(1)) {
    throw ShapeError("alignment: student states [{}], teacher states [{}], mask [{}]: they must be [B, S, D] twice and [B, S]",
                     fmt::join(student_BSD.sizes(), ", "), fmt::join(teacher_BSD.sizes(), ", "), fmt::join(is_masked_BS.sizes(), ", "));
  }
  const auto dtype = student_BSD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor student = student_BSD.to(dtype), teacher = teacher_BSD.detach().to(dtype);
  const Tensor count_B = is_masked_BS.logical_not().sum(1).to(dtype);  // tokens that count
  const bool by_row = settings.scope == "sequence";
  const auto rows = static_cast<double>(student.size(0));
  // Masked states are replaced before anything is computed from them, so that they take no gradient even when they are not finite.
  if (settings.distance == "cosine") {
    const Tensor masked_BS1 = is_masked_BS.unsqueeze(2);
    const Tensor distance_BS = 1.0 - at::cosine_similarity(student.masked_fill(masked_BS1, 1.0), teacher.masked_fill(masked_BS1, 1.0), 2);
    const Tensor sum_B = distance_BS.masked_fill(is_masked_BS, 0.0).sum(1);
    return by_row ? (sum_B / count_B.clamp_min(1.0)).sum() : sum_B.sum() / count_B.sum().clamp_min(1.0) * rows;
  }
  const Tensor square_B = (student - teacher).masked_fill(is_masked_BS.unsqueeze(2), 0.0).square().flatten(1).sum(1);
  const auto width = static_cast<double>(student.size(2));
  if (by_row) return safe_sqrt(square_B / (count_B * width).clamp_min(1.0)).sum();
  return safe_sqrt(square_B.sum() / (count_B.sum() * width).clamp_min(1.0)) * rows;
}

}  // namespace

Alignment::Alignment(const config::AlignmentSettings& settings, int64_t teacher_layers, int64_t student_blocks) : settings_(settings) {
  check_alignment_settings(settings);
  if (settings.kind == "block_wise" && teacher_layers != student_blocks) {
    throw ConfigError(
        "distill.alignment.kind = \"block_wise\" pairs layer with block, but the teacher has {} layers and the student {} blocks: set "
        "student.num_blocks = \"same\", or kind = \"ratio\" or \"average\"",
        teacher_layers, student_blocks);
  }
  if (settings.kind == "ratio" && student_blocks > teacher_layers) {
    throw ConfigError(
        "distill.alignment.kind = \"ratio\" gives each student block a group of teacher layers, but the student has {} blocks and the "
        "teacher "
        "{} layers: lower student.num_blocks, or set kind = \"average\"",
        student_blocks, teacher_layers);
  }
  if (settings.kind != "average") {
    group_sizes_.assign(static_cast<size_t>(student_blocks), teacher_layers / student_blocks);
    group_sizes_.back() += teacher_layers % student_blocks;
  }
}

teacher::TeacherForwardOptions Alignment::teacher_options() const {
  teacher::TeacherForwardOptions options;
  options.target = settings_.target == "block_output" ? teacher::HiddenTarget::block_output : teacher::HiddenTarget::attention_output;
  options.post_norm_last = settings_.state == "post_norm";
  options.collect_mean = settings_.kind == "average";
  options.group_sizes = group_sizes_;
  return options;
}

bool Alignment::needs_blocks() const {
  return settings_.kind != "average";
}

Tensor Alignment::loss_sum(const student::StudentOutput& student, const teacher::TeacherOutput& teacher, const Tensor& mask_BS) const {
  const Tensor is_masked_BS = mask_BS == 0;
  const Tensor& last_BSD = settings_.state == "post_norm" ? student.last_hidden_BSD : student.final_hidden_BSD;
  if (!needs_blocks()) return pair_loss(settings_, last_BSD, teacher.hidden_mean_BSD, is_masked_BS);
  const size_t blocks = group_sizes_.size();
  if (student.block_outputs_BSD.size() != blocks || teacher.group_means_BSD.size() != blocks) {
    throw ShapeError("alignment: {} student blocks and {} teacher groups were collected, {} of each are needed",
                     student.block_outputs_BSD.size(), teacher.group_means_BSD.size(), blocks);
  }
  Tensor sum;
  for (size_t k = 0; k < blocks; ++k) {
    const Tensor& state_BSD = k + 1 == blocks ? last_BSD : student.block_outputs_BSD[k];
    const Tensor loss = pair_loss(settings_, state_BSD, teacher.group_means_BSD[k], is_masked_BS);
    sum = sum.defined() ? sum + loss : loss;
  }
  return sum / static_cast<double>(blocks);
}

}  // namespace distil_xlstm::distill
