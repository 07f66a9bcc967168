#include "train/micro_batch.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>

namespace distil_xlstm::train {
namespace {

eval::DeviceBatch rows_of(const eval::DeviceBatch& batch, int64_t begin, int64_t count) {
  const auto narrowed = [&](const Tensor& x) { return x.defined() ? x.narrow(0, begin, count) : x; };
  return {narrowed(batch.tokens_BS), narrowed(batch.targets_BS), narrowed(batch.mask_BS), narrowed(batch.is_start_BS)};
}

// Moves the replica's gradients to the student's.
void take_gradients(student::Student& student, student::Student& replica) {
  const at::NoGradGuard no_grad;
  const auto &to = student.parameters(), &from = replica.parameters();
  for (size_t i = 0; i < to.size(); ++i) {
    Tensor& gradient = Tensor(from[i].second).mutable_grad();
    if (!gradient.defined()) continue;
    Tensor& sum = Tensor(to[i].second).mutable_grad();
    if (sum.defined()) {
      sum.add_(gradient);
    } else {
      sum = gradient;
    }
    gradient = Tensor();
  }
}

}  // namespace

void LossSums::add(const LossSums& other) {
  head = head.defined() ? head + other.head : other.head;
  if (other.alignment.defined()) alignment = alignment.defined() ? alignment + other.alignment : other.alignment;
}

MicroBatches::MicroBatches(teacher::Teacher& teacher, student::Student& student, const distill::Alignment& alignment)
    : teacher_(teacher),
      student_(student),
      alignment_(alignment),
      student_head_(ops::Head::packed(student.head_weight(), /*with_gradient=*/true)),
      teacher_head_(teacher.head_weight().is_alias_of(student.head_weight())
                        ? student_head_
                        : ops::Head::packed(teacher.head_weight(), /*with_gradient=*/false)) {}

int64_t MicroBatches::num_shares(int64_t rows, const GradientSettings& settings) const {
  const int64_t threads = at::get_num_threads();
  const bool may_split = !settings.measures_alignment || alignment_.is_sum_over_rows();
  return student_.device().is_cpu() && teacher_.device().is_cpu() && may_split && rows >= threads ? threads : 1;
}

LossSums MicroBatches::run(const data::Batch& batch, const GradientSettings& settings) {
  const auto on_device = eval::to_device(batch, student_.device());
  const int64_t rows = on_device.tokens_BS.size(0), shares = num_shares(rows, settings);
  if (shares == 1) return run_rows(student_, on_device, settings, 1);

  while (static_cast<int64_t>(replicas_.size()) < shares - 1) replicas_.push_back(student_.replica());
  std::vector<LossSums> sums(static_cast<size_t>(shares));
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    const at::AutoGradMode with_graph(true);
    for (int64_t share = begin; share < end; ++share) {
      const int64_t first = rows * share / shares, last = rows * (share + 1) / shares;
      student::Student& student = share == 0 ? student_ : *replicas_[static_cast<size_t>(share - 1)];
      sums[static_cast<size_t>(share)] = run_rows(student, rows_of(on_device, first, last - first), settings, shares);
    }
  });
  LossSums total;
  for (const auto& part : sums) total.add(part);
  for (int64_t share = 1; share < shares; ++share) take_gradients(student_, *replicas_[static_cast<size_t>(share - 1)]);
  return total;
}

LossSums MicroBatches::run_rows(student::Student& student, const eval::DeviceBatch& batch, const GradientSettings& settings,
                                int64_t num_shares) const {
  const auto teacher_options = settings.measures_alignment ? alignment_.teacher_options() : teacher::TeacherForwardOptions{};
  const auto teacher = teacher_.forward(batch.tokens_BS, batch.is_start_BS, teacher_options);
  const auto output = student.forward(batch.tokens_BS, batch.is_start_BS, settings.student);
  auto head = settings.plan.head;
  head.num_callers = num_shares;
  const auto losses = ops::head_losses(output.last_hidden_BSD.detach(), student_head_, teacher.last_hidden_BSD, teacher_head_,
                                       batch.targets_BS, batch.mask_BS, head, settings.target_scale);
  LossSums sums{losses.sums, {}};
  std::vector<Tensor> roots = {output.last_hidden_BSD}, root_gradients = {losses.grad_student_hidden_BSD};
  if (settings.measures_alignment) {
    const bool aligns = settings.plan.alignment_weight != 0.0;
    const at::AutoGradMode grad_mode(aligns);
    const auto loss_sum = alignment_.loss_sum(output, teacher, batch.mask_BS);
    sums.alignment = loss_sum.detach();
    if (aligns) {
      roots.push_back(loss_sum);
      root_gradients.push_back(at::full({}, settings.row_scale, loss_sum.options().requires_grad(false)));
    }
  }
  torch::autograd::backward(roots, root_gradients);
  return sums;
}

}  // namespace distil_xlstm::train
