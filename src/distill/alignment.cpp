#include "distill/alignment.h"

#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"

namespace distil_xlstm::distill {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Sum over rows (by_row) or of the whole batch, times its rows: the norm of student - teacher over the tokens that count, over the square
// root of their elements. One difference is made and kept, and the gradient is that times a factor a row: 0 for states that already agree.
// Masked states are replaced before anything is computed from them, so that they take no gradient even when they are not finite.
struct FrobeniusFunction : torch::autograd::Function<FrobeniusFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& student_BSD, const Tensor& teacher_BSD, const Tensor& is_masked_BS,
                        bool by_row) {
    const auto dtype = student_BSD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const Tensor difference_BSD = (student_BSD.to(dtype) - teacher_BSD).masked_fill_(is_masked_BS.unsqueeze(2), 0.0);
    const Tensor norm_B = at::linalg_vector_norm(difference_BSD, 2, at::IntArrayRef{1, 2});
    const Tensor elements_B = is_masked_BS.logical_not().sum(1).to(dtype) * static_cast<double>(student_BSD.size(2));
    Tensor loss, factor_B;
    if (by_row) {
      const Tensor root_B = elements_B.clamp_min(1.0).sqrt();
      loss = (norm_B / root_B).sum();
      factor_B = (norm_B * root_B).reciprocal().masked_fill_(norm_B == 0, 0.0);
    } else {
      const Tensor norm = norm_B.norm(), root = elements_B.sum().clamp_min(1.0).sqrt();
      const auto rows = static_cast<double>(student_BSD.size(0));
      loss = norm / root * rows;
      factor_B = ((norm * root).reciprocal() * rows).masked_fill_(norm == 0, 0.0);
    }
    ctx->save_for_backward({difference_BSD, factor_B});
    ctx->saved_data["dtype"] = static_cast<int64_t>(student_BSD.scalar_type());
    return loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor factor = saved[1].view({-1, 1, 1}) * grads[0];
    return {(saved[0] * factor).to(static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt())), {}, {}, {}};
  }
};

// Sum over rows (or the whole batch's value times the rows) of one pair of states, in float32 or float64.
Tensor pair_loss(const config::AlignmentSettings& settings, const Tensor& student_BSD, const Tensor& teacher_BSD,
                 const Tensor& is_masked_BS) {
  if (student_BSD.sizes() != teacher_BSD.sizes() || student_BSD.size(0) != is_masked_BS.size(0) ||
      student_BSD.size(1) != is_masked_BS.size(1)) {
    throw ShapeError("alignment: student states [{}], teacher states [{}], mask [{}]: they must be [B, S, D] twice and [B, S]",
                     fmt::join(student_BSD.sizes(), ", "), fmt::join(teacher_BSD.sizes(), ", "), fmt::join(is_masked_BS.sizes(), ", "));
  }
  const bool by_row = settings.scope == config::AlignmentScope::sequence;
  if (settings.distance != config::AlignmentDistance::cosine)
    return FrobeniusFunction::apply(student_BSD, teacher_BSD.detach(), is_masked_BS, by_row);
  const auto dtype = student_BSD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor student = student_BSD.to(dtype), teacher = teacher_BSD.detach().to(dtype), masked_BS1 = is_masked_BS.unsqueeze(2);
  const Tensor count_B = is_masked_BS.logical_not().sum(1).to(dtype);  // tokens that count
  const Tensor distance_BS = 1.0 - at::cosine_similarity(student.masked_fill(masked_BS1, 1.0), teacher.masked_fill(masked_BS1, 1.0), 2);
  const Tensor sum_B = distance_BS.masked_fill(is_masked_BS, 0.0).sum(1);
  return by_row ? (sum_B / count_B.clamp_min(1.0)).sum()
                : sum_B.sum() / count_B.sum().clamp_min(1.0) * static_cast<double>(student.size(0));
}

}  // namespace

void check_alignment(const config::AlignmentSettings& settings) {
  if (settings.target == config::LayerState::attention_output && settings.state == config::AlignmentState::post_norm) {
    throw ConfigError(
        "distill.alignment.state = \"post_norm\" goes with target = \"block_output\" only: attention outputs have no norm after them");
  }
}

Alignment::Alignment(const config::AlignmentSettings& settings, int64_t teacher_layers, int64_t student_blocks) : settings_(settings) {
  using config::AlignmentKind;
  check_alignment(settings);
  if (settings.kind == AlignmentKind::block_wise && teacher_layers != student_blocks) {
    throw ConfigError(
        "distill.alignment.kind = \"block_wise\" pairs layer with block, but the teacher has {} layers and the student {} blocks: set "
        "student.num_blocks = \"same\", or kind = \"ratio\" or \"average\"",
        teacher_layers, student_blocks);
  }
  if (settings.kind == AlignmentKind::ratio && student_blocks > teacher_layers) {
    throw ConfigError(
        "distill.alignment.kind = \"ratio\" gives each student block a group of teacher layers, but the student has {} blocks and the "
        "teacher "
        "{} layers: lower student.num_blocks, or set kind = \"average\"",
        student_blocks, teacher_layers);
  }
  if (settings.kind != AlignmentKind::average) {
    group_sizes_.assign(static_cast<size_t>(student_blocks), teacher_layers / student_blocks);
    group_sizes_.back() += teacher_layers % student_blocks;
  }
}

teacher::TeacherForwardOptions Alignment::teacher_options() const {
  teacher::TeacherForwardOptions options;
  options.target = settings_.target;
  options.post_norm_last = settings_.state == config::AlignmentState::post_norm;
  options.collect_mean = settings_.kind == config::AlignmentKind::average;
  options.group_sizes = group_sizes_;
  return options;
}

bool Alignment::needs_layers() const {
  return settings_.kind != config::AlignmentKind::average;
}

Tensor Alignment::loss_sum(const student::StudentOutput& student, const teacher::TeacherOutput& teacher, const Tensor& mask_BS) const {
  const Tensor is_masked_BS = mask_BS == 0;
  const Tensor& last_BSD = settings_.state == config::AlignmentState::post_norm ? student.last_hidden_BSD : student.final_hidden_BSD;
  if (!needs_layers()) return pair_loss(settings_, last_BSD, teacher.hidden_mean_BSD, is_masked_BS);
  const size_t blocks = group_sizes_.size();
  if (student.layer_outputs_BSD.size() != blocks || teacher.group_means_BSD.size() != blocks) {
    throw ShapeError("alignment: {} student blocks and {} teacher groups were collected, {} of each are needed",
                     student.layer_outputs_BSD.size(), teacher.group_means_BSD.size(), blocks);
  }
  Tensor sum;
  for (size_t k = 0; k < blocks; ++k) {
    const Tensor& state_BSD = k + 1 == blocks ? last_BSD : student.layer_outputs_BSD[k];
    const Tensor loss = pair_loss(settings_, state_BSD, teacher.group_means_BSD[k], is_masked_BS);
    sum = sum.defined() ? sum + loss : loss;
  }
  return sum / static_cast<double>(blocks);
}

}  // namespace distil_xlstm::distill
