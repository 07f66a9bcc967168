#include "train/micro_batch.h"

#include <ATen/Parallel.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/log.h"
#include "ops/device.h"

namespace distil_xlstm::train {
namespace {

constexpr double kLookSeconds = 30;  // between trials of fewer or more workers: one such micro-batch, as a rule

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

// The parameters' gradients while several micro-batches run: set aside after each, and all added at once, in a few launches instead of one
// a parameter.
class GradientSums {
 public:
  // Begins with the gradients that are there, and gives all back at its end.
  explicit GradientSums(const NamedTensors& parameters) : parameters_(parameters), sums_(parameters.size()) { take(); }
  ~GradientSums() {
    for (size_t i = 0; i < sums_.size(); ++i) Tensor(parameters_[i].second).mutable_grad() = std::move(sums_[i]);
  }
  GradientSums(const GradientSums&) = delete;
  GradientSums& operator=(const GradientSums&) = delete;

  void take() {
    const at::NoGradGuard no_grad;
    std::vector<Tensor> to, from;
    for (size_t i = 0; i < sums_.size(); ++i) {
      Tensor gradient = std::exchange(Tensor(parameters_[i].second).mutable_grad(), Tensor());
      if (!gradient.defined()) continue;
      if (sums_[i].defined()) {
        to.push_back(sums_[i]);
        from.push_back(std::move(gradient));
      } else {
        sums_[i] = std::move(gradient);
      }
    }
    if (!to.empty()) at::_foreach_add_(to, from);
  }

 private:
  const NamedTensors& parameters_;
  std::vector<Tensor> sums_;
};

bool holds_same(const data::Batch& a, const data::Batch& b) {
  return a.num_rows == b.num_rows && a.context_length == b.context_length && a.tokens == b.tokens && a.targets == b.targets &&
         a.mask == b.mask && a.is_start == b.is_start;
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

MicroBatches::MicroBatches(teacher::Teacher& teacher, student::Student& student, const distill::Alignment& alignment,
                           const ops::HeadRows& head_rows)
    : teacher_(teacher),
      student_(student),
      alignment_(alignment),
      head_rows_(head_rows),
      teacher_stream_(make_teacher_stream(teacher.device(), student.device())),
      student_head_(ops::Head::packed(head_rows.of_head(student.head_weight()), /*with_gradient=*/true)),
      teacher_head_(teacher.head_weight().is_alias_of(student.head_weight())
                        ? student_head_
                        : ops::Head::packed(head_rows.of_head(teacher.head_weight()), /*with_gradient=*/false)) {}

MicroBatches::~MicroBatches() {
  try {
    drop_ahead();
  } catch (const std::exception& error) {  // of a device that has failed: who works on it next will hear of it
    spdlog::debug("leaving a teacher's forward: {}", error.what());
  }
}

int64_t MicroBatches::num_shares(int64_t rows, const GradientSettings& settings) const {
  const int64_t threads = at::get_num_threads();
  const bool may_split = !settings.measures_alignment || alignment_.is_sum_over_rows();
  return student_.device().is_cpu() && teacher_.device().is_cpu() && may_split && rows >= threads ? threads : 1;
}

LossSums MicroBatches::run(const std::vector<data::Batch>& batches, const GradientSettings& settings, const NextBatch* next) {
  if (teacher_stream_) return run_ahead(batches, settings, next);
  LossSums sums;
  for (const auto& batch : batches) sums.add(run_in_shares(batch, settings));
  return sums;
}

// What the current stream does from here on comes after it; so its batch's memory may go back.
void MicroBatches::drop_ahead() {
  if (!ahead_) return;
  ahead_->done.block(current_stream());
  ahead_.reset();
}

c10::Stream MicroBatches::current_stream() const {
  return c10::impl::VirtualGuardImpl(student_.device().type()).getStream(student_.device());
}

// The teacher of the next micro-batch, be it of the next step, runs beside the student and the losses of this one, i, on a stream of its
// own. It waits for the losses of i - 1: so two sets of its outputs exist at most, and memory that those of i - 1 leave to its stream has
// been read. The current stream has waited for every teacher before the batches' memory goes back.
LossSums MicroBatches::run_ahead(const std::vector<data::Batch>& batches, const GradientSettings& settings, const NextBatch* next) {
  const at::Device device = student_.device();
  const c10::Stream current = current_stream(), ahead = *teacher_stream_;
  const auto mark = [&](const c10::Stream& stream) {
    c10::Event event(device.type());
    event.record(stream);
    return event;
  };
  const auto start_teacher = [&](const eval::DeviceBatch& batch, bool measures_alignment, const c10::Event& after) {
    after.block(ahead);
    const c10::StreamGuard guard(ahead);
    auto output = run_teacher(batch, measures_alignment);
    return Ahead{.host = {}, .measures_alignment = measures_alignment, .batch = batch, .output = std::move(output), .done = mark(ahead)};
  };
  const bool is_first_started =
      ahead_ && ahead_->measures_alignment == settings.measures_alignment && holds_same(ahead_->host, batches.front());
  if (!is_first_started) drop_ahead();
  // All of them first: what is marked on the current stream after that waits for these copies.
  std::vector<eval::DeviceBatch> on_device;
  for (const auto& batch : batches) {
    const bool is_there = is_first_started && on_device.empty();
    on_device.push_back(is_there ? ahead_->batch : eval::to_device(batch, device));
  }
  if (next != nullptr) on_device.push_back(eval::to_device(*next->batch, device));
  try {
    LossSums sums;
    GradientSums gradients(student_.parameters());
    std::optional<Ahead> teacher = std::exchange(ahead_, std::nullopt);
    if (!teacher) teacher = start_teacher(on_device.front(), settings.measures_alignment, mark(current));
    for (size_t i = 0; i < batches.size(); ++i) {
      const c10::Event losses_before = mark(current);
      const auto output = student_.forward(on_device[i].tokens_BS, on_device[i].is_start_BS, settings.student);
      std::optional<Ahead> following;
      if (i + 1 < on_device.size()) {
        const bool is_next_step = i + 1 == batches.size();
        following = start_teacher(on_device[i + 1], is_next_step ? next->measures_alignment : settings.measures_alignment, losses_before);
      }
      teacher->done.block(current);
      sums.add(run_losses(output, teacher->output, on_device[i], settings, 1));
      gradients.take();
      teacher = std::move(following);
    }
    if (teacher) teacher->host = *next->batch;
    ahead_ = std::move(teacher);
    return sums;
  } catch (...) {
    ops::synchronize(device);  // the teacher may still read the batches, whose memory goes back now
    ahead_.reset();
    throw;
  }
}

LossSums MicroBatches::run_in_shares(const data::Batch& batch, const GradientSettings& settings) {
  const auto on_device = eval::to_device(batch, student_.device());
  const int64_t rows = on_device.tokens_BS.size(0), shares = num_shares(rows, settings);
  const auto run_rows = [&](student::Student& student, const eval::DeviceBatch& part) {
    const auto teacher = run_teacher(part, settings.measures_alignment);
    return run_losses(student.forward(part.tokens_BS, part.is_start_BS, settings.student), teacher, part, settings, shares);
  };
  if (shares == 1) return run_rows(student_, on_device);

  while (static_cast<int64_t>(replicas_.size()) < shares - 1) replicas_.push_back(student_.replica());
  std::vector<LossSums> sums(static_cast<size_t>(shares));
  const auto run_share = [&](int64_t share) {
    const int64_t first = rows * share / shares, last = rows * (share + 1) / shares;
    student::Student& student = share == 0 ? student_ : *replicas_[static_cast<size_t>(share - 1)];
    sums[static_cast<size_t>(share)] = run_rows(student, rows_of(on_device, first, last - first));
  };
  if (!workers_ || workers_->max_threads() != shares) workers_.emplace(static_cast<int>(shares), static_cast<int>(shares), kLookSeconds);
  const int64_t workers = workers_->threads();
  const double started = monotonic_seconds();
  std::atomic<int64_t> next = 0;
  // All threads are in the region whoever works in it, so that each share's operations run on one thread, and give the same bits.
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    const at::AutoGradMode with_graph(true);
    for (int64_t worker = begin; worker < std::min(end, workers); ++worker) {
      for (int64_t share = next++; share < shares; share = next++) run_share(share);
    }
  });
  workers_->record(monotonic_seconds() - started);
  LossSums total;
  for (const auto& part : sums) total.add(part);
  for (int64_t share = 1; share < shares; ++share) take_gradients(student_, *replicas_[static_cast<size_t>(share - 1)]);
  return total;
}

teacher::TeacherOutput MicroBatches::run_teacher(const eval::DeviceBatch& batch, bool measures_alignment) const {
  const auto options = measures_alignment ? alignment_.teacher_options() : teacher::TeacherForwardOptions{};
  return teacher_.forward(batch.tokens_BS, batch.is_start_BS, options);
}

LossSums MicroBatches::run_losses(const student::StudentOutput& output, const teacher::TeacherOutput& teacher,
                                  const eval::DeviceBatch& batch, const GradientSettings& settings, int64_t num_shares) const {
  auto head = settings.plan.head;
  head.num_callers = num_shares;
  const auto losses = ops::head_losses(output.last_hidden_BSD.detach(), student_head_, teacher.last_hidden_BSD, teacher_head_,
                                       head_rows_.of_ids(batch.targets_BS), batch.mask_BS, head, settings.target_scale);
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
