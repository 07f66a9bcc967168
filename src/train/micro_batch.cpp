#include "train/micro_batch.h"

#include <ATen/Parallel.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include "ops/device.h"

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

// Where both models are on one GPU.
std::optional<c10::Stream> make_teacher_stream(at::Device teacher, at::Device student) {
  if (!student.is_cuda() || teacher != student) return std::nullopt;
  return c10::impl::VirtualGuardImpl(student.type()).getStreamFromGlobalPool(student, /*isHighPriority=*/false);
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
      teacher_stream_(make_teacher_stream(teacher.device(), student.device())),
      student_head_(ops::Head::packed(student.head_weight(), /*with_gradient=*/true)),
      teacher_head_(teacher.head_weight().is_alias_of(student.head_weight())
                        ? student_head_
                        : ops::Head::packed(teacher.head_weight(), /*with_gradient=*/false)) {}

int64_t MicroBatches::num_shares(int64_t rows, const GradientSettings& settings) const {
  const int64_t threads = at::get_num_threads();
  const bool may_split = !settings.measures_alignment || alignment_.is_sum_over_rows();
  return student_.device().is_cpu() && teacher_.device().is_cpu() && may_split && rows >= threads ? threads : 1;
}

LossSums MicroBatches::run(const std::vector<data::Batch>& batches, const GradientSettings& settings) {
  if (teacher_stream_) return run_ahead(batches, settings);
  LossSums sums;
  for (const auto& batch : batches) sums.add(run_in_shares(batch, settings));
  return sums;
}

// The teacher of micro-batch i + 1 runs beside the student and the losses of micro-batch i, on a stream of its own. It waits for the losses
// of i - 1: so two sets of its outputs exist at most, and memory that those of i - 1 leave to its stream has been read. The current stream
// has waited for every teacher before the batches' memory goes back.
LossSums MicroBatches::run_ahead(const std::vector<data::Batch>& batches, const GradientSettings& settings) {
  const at::Device device = student_.device();
  const c10::Stream current = c10::impl::VirtualGuardImpl(device.type()).getStream(device), ahead = *teacher_stream_;
  const auto mark = [&](const c10::Stream& stream) {
    c10::Event event(device.type());
    event.record(stream);
    return event;
  };
  struct Started {
    teacher::TeacherOutput output;
    c10::Event done;
  };
  const auto start_teacher = [&](const eval::DeviceBatch& batch, const c10::Event& after) {
    after.block(ahead);
    const c10::StreamGuard guard(ahead);
    auto output = run_teacher(batch, settings);
    return Started{std::move(output), mark(ahead)};
  };
  std::vector<eval::DeviceBatch> on_device;
  for (const auto& batch : batches) on_device.push_back(eval::to_device(batch, device));
  try {
    LossSums sums;
    Started teacher = start_teacher(on_device.front(), mark(current));
    for (size_t i = 0; i < batches.size(); ++i) {
      const c10::Event losses_before = mark(current);
      const auto output = student_.forward(on_device[i].tokens_BS, on_device[i].is_start_BS, settings.student);
      std::optional<Started> next;
      if (i + 1 < batches.size()) next = start_teacher(on_device[i + 1], losses_before);
      teacher.done.block(current);
      sums.add(run_losses(output, teacher.output, on_device[i], settings, 1));
      if (next) teacher = std::move(*next);
    }
    return sums;
  } catch (...) {
    ops::synchronize(device);  // the teacher may still read the batches, whose memory goes back now
    throw;
  }
}

LossSums MicroBatches::run_in_shares(const data::Batch& batch, const GradientSettings& settings) {
  const auto on_device = eval::to_device(batch, student_.device());
  const int64_t rows = on_device.tokens_BS.size(0), shares = num_shares(rows, settings);
  const auto run_rows = [&](student::Student& student, const eval::DeviceBatch& part) {
    const auto teacher = run_teacher(part, settings);
    return run_losses(student.forward(part.tokens_BS, part.is_start_BS, settings.student), teacher, part, settings, shares);
  };
  if (shares == 1) return run_rows(student_, on_device);

  while (static_cast<int64_t>(replicas_.size()) < shares - 1) replicas_.push_back(student_.replica());
  std::vector<LossSums> sums(static_cast<size_t>(shares));
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    const at::AutoGradMode with_graph(true);
    for (int64_t share = begin; share < end; ++share) {
      const int64_t first = rows * share / shares, last = rows * (share + 1) / shares;
      student::Student& student = share == 0 ? student_ : *replicas_[static_cast<size_t>(share - 1)];
      sums[static_cast<size_t>(share)] = run_rows(student, rows_of(on_device, first, last - first));
    }
  });
  LossSums total;
  for (const auto& part : sums) total.add(part);
  for (int64_t share = 1; share < shares; ++share) take_gradients(student_, *replicas_[static_cast<size_t>(share - 1)]);
  return total;
}

teacher::TeacherOutput MicroBatches::run_teacher(const eval::DeviceBatch& batch, const GradientSettings& settings) const {
  const auto options = settings.measures_alignment ? alignment_.teacher_options() : teacher::TeacherForwardOptions{};
  return teacher_.forward(batch.tokens_BS, batch.is_start_BS, options);
}

LossSums MicroBatches::run_losses(const student::StudentOutput& output, const teacher::TeacherOutput& teacher,
                                  const eval::DeviceBatch& batch, const GradientSettings& settings, int64_t num_shares) const {
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
