#include "train/micro_batch.h"

#include <ATen/Parallel.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "ops/device.h"
#include "student/mixer.h"

namespace distil_xlstm::train {
namespace {

constexpr double kLookSeconds = 30;  // between trials of fewer or more workers: one such micro-batch, as a rule

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

// Trains what the student trains.
std::unique_ptr<student::Student> replica_of(const student::Student& student) {
  auto replica = student.replica();
  for (size_t i = 0; i < student.parameters().size(); ++i)
    Tensor(replica->parameters()[i].second).set_requires_grad(student.parameters()[i].second.requires_grad());
  return replica;
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
         a.mask == b.mask && a.is_start == b.is_start && a.row_ids == b.row_ids;
}

// Where documents begin inside rows. A row's first token always says so (data::Batch), and would end the state that the row starts with.
Tensor inner_starts(const Tensor& is_start_BS) {
  if (!is_start_BS.defined()) return is_start_BS;
  Tensor inner_BS = is_start_BS.clone();
  inner_BS.select(1, 0).zero_();
  return inner_BS;
}

// How many rows a row's state has read before it: never itself.
int64_t num_reads(const GradientSettings& settings, int64_t rows) {
  return std::min(settings.rows_before, rows - 1);
}

// Each row gets the state of the one before it, the first that of the last.
Tensor row_before(int64_t rows) {
  return at::arange(rows, at::kLong).roll(1);
}

// Where both work on one GPU.
std::optional<c10::Stream> make_teacher_stream(const teacher::TeacherSource& teacher, at::Device student) {
  if (!student.is_cuda() || teacher.device() != student || !teacher.works_on_stream()) return std::nullopt;
  return c10::impl::VirtualGuardImpl(student.type()).getStreamFromGlobalPool(student, /*isHighPriority=*/false);
}

}  // namespace

void LossSums::add(const LossSums& other) {
  if (other.head.defined()) head = head.defined() ? head + other.head : other.head;
  hidden.resize(std::max(hidden.size(), other.hidden.size()));
  for (size_t i = 0; i < other.hidden.size(); ++i) {
    if (other.hidden[i].defined()) hidden[i] = hidden[i].defined() ? hidden[i] + other.hidden[i] : other.hidden[i];
  }
}

MicroBatches::MicroBatches(teacher::TeacherSource& teacher, student::Student& student, const distill::Objective& objective,
                           const ops::HeadRows& head_rows)
    : teacher_(teacher),
      student_(student),
      objective_(objective),
      head_rows_(head_rows),
      num_matrices_(student.shape().num_mixing_matrices()),
      teacher_stream_(make_teacher_stream(teacher, student.device())),
      student_head_(ops::Head::packed(head_rows.of_head(student.head_weight()), /*with_gradient=*/true)),
      teacher_head_(teacher.head().is_alias_of(student.head_weight())
                        ? student_head_
                        : ops::Head::packed(head_rows.of_head(teacher.head()), /*with_gradient=*/false)) {}

MicroBatches::~MicroBatches() {
  try {
    drop_ahead();
  } catch (const std::exception& error) {  // of a device that has failed: who works on it next will hear of it
    spdlog::debug("leaving a teacher's forward: {}", error.what());
  }
}

int64_t MicroBatches::num_shares(int64_t rows, const GradientSettings& settings) const {
  const int64_t threads = at::get_num_threads();
  const bool may_split = objective_.is_sum_over_rows(settings.measured);
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
  const auto start_teacher = [&](const nn::DeviceBatch& batch, const teacher::TeacherForwardOptions& options, const c10::Event& after) {
    after.block(ahead);
    const c10::StreamGuard guard(ahead);
    auto output = teacher_.signals(batch, options);
    return Ahead{.host = {}, .wanted = options, .batch = batch, .output = std::move(output), .done = mark(ahead)};
  };
  const auto options = wanted(settings.measured, settings.takes_teacher_inputs);
  const bool is_first_started = ahead_ && ahead_->wanted == options && holds_same(ahead_->host, batches.front());
  if (!is_first_started) drop_ahead();
  // All of them first: what is marked on the current stream after that waits for these copies.
  std::vector<nn::DeviceBatch> on_device;
  for (const auto& batch : batches) {
    const bool is_there = is_first_started && on_device.empty();
    on_device.push_back(is_there ? ahead_->batch : nn::to_device(batch, device));
  }
  if (next != nullptr) on_device.push_back(nn::to_device(*next->batch, device));
  try {
    LossSums sums;
    GradientSums gradients(student_.parameters());
    std::optional<Ahead> teacher = std::exchange(ahead_, std::nullopt);
    if (!teacher) teacher = start_teacher(on_device.front(), options, mark(current));
    for (size_t i = 0; i < batches.size(); ++i) {
      const c10::Event losses_before = mark(current);
      if (settings.takes_teacher_inputs) teacher->done.block(current);
      student::StudentOutput output;
      if (!settings.aligns_layers) {
        const auto state = state_before(on_device[i], settings);
        output = run_student(student_, on_device[i], &teacher->output, settings, state.get());
      }
      std::optional<Ahead> following;
      if (i + 1 < on_device.size()) {
        const bool is_next_step = i + 1 == batches.size();
        following =
            start_teacher(on_device[i + 1], is_next_step ? wanted(next->measured, next->takes_teacher_inputs) : options, losses_before);
      }
      teacher->done.block(current);
      sums.add(settings.aligns_layers ? run_layers(student_, teacher->output, on_device[i], settings)
                                      : run_losses(output, teacher->output, on_device[i], settings, 1));
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
  const auto on_device = nn::to_device(batch, student_.device());
  const int64_t rows = on_device.tokens_BS.size(0), shares = num_shares(rows, settings);
  const auto options = wanted(settings.measured, settings.takes_teacher_inputs);
  const auto run_rows = [&](student::Student& student, const nn::DeviceBatch& part, nn::DecodeState* state) {
    const auto teacher = teacher_.signals(part, options);
    if (settings.aligns_layers) return run_layers(student, teacher, part, settings);
    return run_losses(run_student(student, part, &teacher, settings, state), teacher, part, settings, shares);
  };
  if (shares == 1) {
    const auto state = state_before(on_device, settings);
    return run_rows(student_, on_device, state.get());
  }

  while (static_cast<int64_t>(replicas_.size()) < shares - 1) replicas_.push_back(replica_of(student_));
  if (!workers_ || workers_->max_threads() != shares) workers_.emplace(static_cast<int>(shares), static_cast<int>(shares), kLookSeconds);
  const double started = monotonic_seconds();
  const auto first_of = [&](int64_t share) { return rows * share / shares; };
  std::vector<nn::DeviceBatch> parts;
  std::vector<student::Student*> students;
  std::vector<std::unique_ptr<nn::DecodeState>> states(static_cast<size_t>(shares));
  for (int64_t share = 0; share < shares; ++share) {
    parts.push_back(on_device.rows(first_of(share), first_of(share + 1) - first_of(share)));
    students.push_back(share == 0 ? &student_ : replicas_[static_cast<size_t>(share - 1)].get());
  }
  const int64_t reads = num_reads(settings, rows), context_length = on_device.tokens_BS.size(1);
  for (int64_t read = 0; read < reads; ++read) {
    in_shares(shares, [&](int64_t share) {
      const auto i = static_cast<size_t>(share);
      if (read == 0) states[i] = students[i]->new_state(parts[i].tokens_BS.size(0), (reads + 1) * context_length);
      read_on(*students[i], parts[i], settings, *states[i]);
    });
    const auto all = std::move(states.front());
    for (size_t i = 1; i < states.size(); ++i) all->append_rows(*states[i]);
    const Tensor before = row_before(rows);
    for (int64_t share = 0; share < shares; ++share) {
      const int64_t first = first_of(share);
      states[static_cast<size_t>(share)] = all->rows_at(before.narrow(0, first, first_of(share + 1) - first));
    }
  }
  std::vector<LossSums> sums(static_cast<size_t>(shares));
  in_shares(shares, [&](int64_t share) {
    const auto i = static_cast<size_t>(share);
    sums[i] = run_rows(*students[i], parts[i], states[i].get());
  });
  workers_->record(monotonic_seconds() - started);
  LossSums total;
  for (const auto& part : sums) total.add(part);
  for (int64_t share = 1; share < shares; ++share) take_gradients(student_, *replicas_[static_cast<size_t>(share - 1)]);
  return total;
}

// All threads are in the region whoever works in it, so that each share's operations run on one thread, and give the same bits.
void MicroBatches::in_shares(int64_t shares, const std::function<void(int64_t)>& work) {
  const int64_t workers = workers_->threads();
  std::atomic<int64_t> next = 0;
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    const at::AutoGradMode with_graph(true);
    for (int64_t worker = begin; worker < std::min(end, workers); ++worker) {
      for (int64_t share = next++; share < shares; share = next++) work(share);
    }
  });
}

// Null: the zero state.
std::unique_ptr<nn::DecodeState> MicroBatches::state_before(const nn::DeviceBatch& batch, const GradientSettings& settings) const {
  const int64_t rows = batch.tokens_BS.size(0), reads = num_reads(settings, rows);
  if (reads == 0) return nullptr;
  auto state = student_.new_state(rows, (reads + 1) * batch.tokens_BS.size(1));
  for (int64_t read = 0; read < reads; ++read) {
    read_on(student_, batch, settings, *state);
    state->gather_rows(row_before(rows));
  }
  return state;
}

void MicroBatches::read_on(student::Student& student, const nn::DeviceBatch& batch, const GradientSettings& settings,
                           nn::DecodeState& state) {
  const at::NoGradGuard no_grad;
  (void)student.forward(batch.tokens_BS, inner_starts(batch.is_start_BS),
                        {.compute_dtype = settings.student.compute_dtype, .mlstm_form = settings.student.mlstm_form}, &state);
}

teacher::TeacherForwardOptions MicroBatches::wanted(const distill::Measured& measured, bool takes_teacher_inputs) const {
  auto options = objective_.teacher_options(measured);
  if (takes_teacher_inputs && options.target != config::LayerState::block_output)
    throw ConfigError(
        "a stage that gives the student's layers the teacher's states needs terms on block outputs, not on attention outputs");
  options.collect_all = options.collect_all || takes_teacher_inputs;
  return options;
}

student::StudentOutput MicroBatches::run_student(student::Student& student, const nn::DeviceBatch& batch,
                                                 const teacher::TeacherOutput* teacher, const GradientSettings& settings,
                                                 nn::DecodeState* state) const {
  auto options = settings.student;
  if (settings.takes_teacher_inputs) options.layer_inputs_BSD = &teacher->hidden_BSD;
  return student.forward(batch.tokens_BS, state == nullptr ? batch.is_start_BS : inner_starts(batch.is_start_BS), options, state);
}

// Layer by layer: each one's graph is gone before the next is made.
LossSums MicroBatches::run_layers(student::Student& student, const teacher::TeacherOutput& teacher, const nn::DeviceBatch& batch,
                                  const GradientSettings& settings) const {
  LossSums sums{Tensor(), std::vector<Tensor>(settings.measured.size())};
  const auto num_layers = static_cast<int64_t>(teacher.layer_inputs_BSD.size());
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const auto at_layer = static_cast<size_t>(layer);
    const Tensor& x_BSD = teacher.layer_inputs_BSD[at_layer];
    // A gradient of rounding errors alone would still be a whole step of Adam's.
    const at::AutoGradMode grad_mode(at::GradMode::is_enabled() && !student.keeps_mixer(layer));
    // Of one term, as a mean over the layers that it knows; undefined where it does not know this one.
    const auto layer_loss = [&](const distill::HiddenTerm& term) -> Tensor {
      if (!term.compares_matrices()) {
        const Tensor mixed_BSD = student.mixer_output(layer, x_BSD, batch.is_start_BS, settings.student);
        return term.layer_loss_sum(mixed_BSD, teacher.attention_outputs_BSD[at_layer], batch.mask_BS) / static_cast<double>(num_layers);
      }
      const Tensor error = student.mixing_error_sum(
          layer, x_BSD, batch.is_start_BS, {teacher.queries_BSHK[at_layer], teacher.keys_BSGK[at_layer], batch.mask_BS}, settings.student);
      return error.defined() ? error / static_cast<double>(num_matrices_) : error;
    };
    Tensor objective;
    for (size_t i = 0; i < settings.measured.size(); ++i) {
      if (!settings.measured[i]) continue;
      const Tensor loss = layer_loss(*objective_.hidden()[i]);
      if (!loss.defined()) continue;
      sums.hidden[i] = sums.hidden[i].defined() ? sums.hidden[i] + loss.detach() : loss.detach();
      const double scale = settings.hidden_scales.at(i);
      if (scale != 0.0) objective = objective.defined() ? objective + scale * loss : scale * loss;
    }
    if (objective.defined() && objective.requires_grad()) objective.backward();
  }
  return sums;
}

LossSums MicroBatches::run_losses(const student::StudentOutput& output, const teacher::TeacherOutput& teacher, const nn::DeviceBatch& batch,
                                  const GradientSettings& settings, int64_t num_shares) const {
  const auto losses = ops::head_losses(output.last_hidden_BSD.detach(), student_head_, teacher.last_hidden_BSD, teacher_head_,
                                       head_rows_.of_ids(batch.targets_BS), batch.mask_BS, settings.head, settings.target_scale,
                                       {.num_callers = num_shares, .added = settings.added_head_terms});
  LossSums sums{losses.sums, std::vector<Tensor>(settings.measured.size())};
  std::vector<Tensor> roots, root_gradients;
  const auto add_root = [&](const Tensor& root, const Tensor& gradient) {
    if (!root.requires_grad()) return;  // nothing that this stage trains leads there
    roots.push_back(root);
    root_gradients.push_back(gradient);
  };
  add_root(output.last_hidden_BSD, losses.grad_student_hidden_BSD);
  for (size_t i = 0; i < settings.measured.size(); ++i) {
    if (!settings.measured[i]) continue;
    const double scale = settings.hidden_scales.at(i);
    const at::AutoGradMode grad_mode(scale != 0.0);
    const auto loss_sum = objective_.hidden()[i]->loss_sum(output, teacher, batch.mask_BS);
    sums.hidden[i] = loss_sum.detach();
    if (scale != 0.0) add_root(loss_sum, at::full({}, scale, loss_sum.options().requires_grad(false)));
  }
  if (!roots.empty()) torch::autograd::backward(roots, root_gradients);
  return sums;
}

}  // namespace distil_xlstm::train
