// distil-xlstm selfcheck: the identities that a right loss and right kernels must meet, on this machine and device, in under a minute.
#include <chrono>
#include <cmath>
#include <functional>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "cli/commands.h"
#include "distill/schedule.h"
#include "ops/device.h"
#include "ops/head_loss.h"
#include "ops/mlstm.h"
#include "ops/norm.h"
#include "ops/slstm.h"
#include "student/model.h"

// B batch, S sequence, H heads, G gates, K head width, V vocabulary (or value width in the mLSTM), D width.
namespace distil_xlstm::cli {
namespace {

struct Check {
  std::string name;
  double bound;
  std::function<double()> error;  // what must not exceed the bound
};

double relative(const Tensor& out, const Tensor& reference) {
  const Tensor wide = reference.detach().to(at::kCPU, at::kDouble);
  return ((out.detach().to(at::kCPU, at::kDouble) - wide).norm() / wide.norm().clamp_min(1e-30)).item<double>();
}

Tensor random(at::IntArrayRef shape, at::Device device, double scale = 1.0) {
  return at::randn(shape, at::kDouble).mul_(scale).to(device);
}

ops::MlstmInputs mlstm_inputs(at::Device device, int64_t length) {
  return {random({2, length, 3, 16}, device), random({2, length, 3, 16}, device),  random({2, length, 3, 8}, device),
          random({2, length, 3}, device),     random({2, length, 3}, device, 2.0), {}};
}

ops::MlstmInputs slice(const ops::MlstmInputs& inputs, int64_t begin, int64_t end) {
  const auto cut = [&](const Tensor& tensor) { return tensor.slice(1, begin, end); };
  return {cut(inputs.q_BSHK), cut(inputs.k_BSHK), cut(inputs.v_BSHV), cut(inputs.igate_BSH), cut(inputs.fgate_BSH), {}};
}

double mlstm_forms(at::Device device) {
  const auto inputs = mlstm_inputs(device, 77);
  const Tensor recurrent = ops::mlstm_recurrent(inputs).h_BSHV;
  double worst = 0;
  for (const int64_t chunk_size : {1, 16, 50, 128})
    worst = std::max(worst, relative(ops::mlstm_chunkwise(inputs, chunk_size).h_BSHV, recurrent));
  return worst;
}

double mlstm_split(at::Device device) {
  const auto inputs = mlstm_inputs(device, 61);
  const Tensor whole = ops::mlstm_chunkwise(inputs, 16).h_BSHV;
  const auto first = ops::mlstm_chunkwise(slice(inputs, 0, 23), 16);
  const auto second = ops::mlstm_chunkwise(slice(inputs, 23, 61), 16, first.state);
  return relative(at::cat({first.h_BSHV, second.h_BSHV}, 1), whole);
}

// Directional derivative against central differences in float64. The mLSTM's normaliser has a kink (max of two terms), and a draw
// that lies on it says nothing: the best of three draws counts, which a wrong gradient fails all the same.
double best_of_three(const std::function<double()>& draw) {
  return std::min({draw(), draw(), draw()});
}

// Relative.
double gradient_error(const std::function<Tensor(const Tensor&)>& loss, const Tensor& at_point) {
  const Tensor point = at_point.detach().clone().requires_grad_(true);
  const Tensor value = loss(point);
  value.backward();
  const Tensor direction = at::randn_like(at_point);
  const double exact = (point.grad() * direction).sum().item<double>();
  const at::NoGradGuard no_grad;
  constexpr double kStep = 1e-6;
  const double difference = (loss(at_point + kStep * direction) - loss(at_point - kStep * direction)).item<double>() / (2 * kStep);
  return std::abs(exact - difference) / std::max(std::abs(difference), 1e-12);
}

double mlstm_gradient(at::Device device) {
  auto inputs = mlstm_inputs(device, 29);
  const Tensor weight = random({2, 29, 3, 8}, device);
  double worst = 0;
  for (Tensor ops::MlstmInputs::* member : {&ops::MlstmInputs::q_BSHK, &ops::MlstmInputs::k_BSHK, &ops::MlstmInputs::v_BSHV,
                                            &ops::MlstmInputs::igate_BSH, &ops::MlstmInputs::fgate_BSH}) {
    worst = std::max(worst, gradient_error(
                                [&](const Tensor& value) {
                                  auto changed = inputs;
                                  changed.*member = value;
                                  return (ops::mlstm_chunkwise(changed, 8).h_BSHV * weight).sum();
                                },
                                inputs.*member));
  }
  return worst;
}

double slstm_split(at::Device device) {
  const Tensor wx = random({2, 37, 3, 4, 8}, device), r = random({3, 8, 4, 8}, device, 0.3), bias = random({3, 4, 8}, device);
  const Tensor whole = ops::slstm_scan(wx, r, bias).y_BSHK;
  const auto first = ops::slstm_scan(wx.slice(1, 0, 11), r, bias);
  const auto second = ops::slstm_scan(wx.slice(1, 11, 37), r, bias, first.state);
  return relative(at::cat({first.y_BSHK, second.y_BSHK}, 1), whole);
}

double slstm_reset(at::Device device) {
  const Tensor wx = random({1, 30, 2, 4, 8}, device), r = random({2, 8, 4, 8}, device, 0.3), bias = random({2, 4, 8}, device);
  Tensor starts = at::zeros({1, 30}, at::kByte);
  starts[0][0] = 1;
  starts[0][13] = 1;
  const Tensor reset = ops::slstm_scan(wx, r, bias, {}, starts.to(device)).y_BSHK;
  const Tensor apart =
      at::cat({ops::slstm_scan(wx.slice(1, 0, 13), r, bias).y_BSHK, ops::slstm_scan(wx.slice(1, 13, 30), r, bias).y_BSHK}, 1);
  return relative(reset, apart);
}

double slstm_gradient(at::Device device) {
  const Tensor wx = random({2, 17, 2, 4, 8}, device), r = random({2, 8, 4, 8}, device, 0.3), bias = random({2, 4, 8}, device);
  const Tensor weight = random({2, 17, 2, 8}, device);
  const auto loss = [&](const Tensor& a, const Tensor& b, const Tensor& c) { return (ops::slstm_scan(a, b, c).y_BSHK * weight).sum(); };
  return std::max({gradient_error([&](const Tensor& value) { return loss(value, r, bias); }, wx),
                   gradient_error([&](const Tensor& value) { return loss(wx, value, bias); }, r),
                   gradient_error([&](const Tensor& value) { return loss(wx, r, value); }, bias)});
}

struct LossCase {
  Tensor student, student_head, teacher, teacher_head, targets, mask;
};

LossCase loss_case(at::Device device) {
  LossCase c{random({2, 19, 16}, device),
             random({33, 16}, device, 0.5),
             random({2, 19, 12}, device),
             random({33, 12}, device, 0.5),
             at::randint(33, {2, 19}, at::kLong).to(device),
             at::ones({2, 19}, at::kByte).to(device)};
  c.mask.slice(1, 11, 15).zero_();
  return c;
}

ops::HeadLosses run_loss(const LossCase& c, const ops::HeadLossOptions& options) {
  return ops::head_losses(c.student, c.student_head, c.teacher, c.teacher_head, c.targets, c.mask, options, 1.0);
}

double loss_value(at::Device device) {
  const LossCase c = loss_case(device);
  const double temperature = 1.7;
  const Tensor keep = c.mask.to(at::kDouble);
  const Tensor student = c.student.matmul(c.student_head.t()), teacher = c.teacher.matmul(c.teacher_head.t());
  const Tensor ce = -student.log_softmax(-1).gather(-1, c.targets.unsqueeze(-1)).squeeze(-1);
  const Tensor p = (teacher / temperature).softmax(-1);
  const Tensor kl = (p * (p.log() - (student / temperature).log_softmax(-1))).sum(-1) * temperature * temperature;
  const auto losses = run_loss(c, {.temperature = temperature, .with_gradient = false});
  return relative(losses.sums.slice(0, 0, 2), at::stack({(ce * keep).sum(), (kl * keep).sum()}));
}

double loss_gradient(at::Device device) {
  LossCase c = loss_case(device);
  const ops::HeadLossOptions options{.ce_weight = 0.3, .kd_weight = 0.7, .temperature = 2.0};
  const Tensor gradient = run_loss(c, options).grad_student_hidden_BSD;
  const Tensor point = c.student, direction = at::randn_like(point);
  const auto value = [&](double step) {
    c.student = point + step * direction;
    auto measured = options;
    measured.with_gradient = false;
    const Tensor sums = run_loss(c, measured).sums.to(at::kCPU);
    return 0.3 * sums[ops::kCe].item<double>() + 0.7 * sums[ops::kKd].item<double>();
  };
  const double difference = (value(1e-6) - value(-1e-6)) / 2e-6;
  return std::abs((gradient * direction).sum().item<double>() - difference) / std::abs(difference);
}

double loss_of_equals(at::Device device) {
  LossCase c = loss_case(device);
  c.teacher = c.student;
  c.teacher_head = c.student_head;
  const auto losses = run_loss(c, {.kd_weight = 1.0, .temperature = 1.5});
  return losses.sums[ops::kKd].abs().item<double>() + losses.grad_student_hidden_BSD.norm().item<double>();
}

double loss_mask(at::Device device) {
  LossCase c = loss_case(device);
  const auto clean = run_loss(c, {.ce_weight = 1.0, .kd_weight = 1.0});
  c.student.slice(1, 11, 15).fill_(std::nan(""));
  c.targets.slice(1, 11, 15).fill_(0);
  const auto poisoned = run_loss(c, {.ce_weight = 1.0, .kd_weight = 1.0});
  return relative(poisoned.sums, clean.sums) + relative(poisoned.grad_student_hidden_BSD, clean.grad_student_hidden_BSD);
}

double schedule_values(at::Device) {
  const distill::Schedule alpha({.schedule = "delta-paper", .start = 0.8, .final = 0.5}, 2000, "alpha");
  const std::vector<std::pair<int64_t, double>> expected = {{0, 0.8}, {1, 0.677185}, {10, 0.588290}, {1000, 0.537933}};
  double worst = 0;
  for (const auto& [step, value] : expected) worst = std::max(worst, std::abs(alpha.value(step) - value));
  return worst;
}

std::unique_ptr<student::Student> small_student(at::Device device, at::ScalarType dtype) {
  student::StudentConfig config;
  config.vocab_size = 50;
  config.embedding_dim = 32;
  config.num_blocks = 3;
  config.context_length = 64;
  config.slstm_at = {0, 2};
  config.chunk_size = 16;
  const Tensor embedding = at::randn({50, 32}).to(device, dtype);
  return student::Student::create(config, embedding, embedding, 1, device, dtype);
}

double decode_equals_forward(at::Device device) {
  const auto student = small_student(device, at::kDouble);
  student->set_compute_dtype(at::kDouble);
  const at::NoGradGuard no_grad;
  const Tensor tokens = at::randint(50, {2, 21}, at::kLong).to(device);
  const Tensor whole = student->forward_hidden(tokens);
  auto state = student->new_state(2, 21);
  std::vector<Tensor> parts = {student->forward_step(tokens.slice(1, 0, 9), *state)};
  const int64_t size = state->size_bytes();
  for (int64_t at = 9; at < 21; ++at) parts.push_back(student->forward_step(tokens.slice(1, at, at + 1), *state));
  if (state->size_bytes() != size) return INFINITY;
  return relative(at::cat(parts, 1), whole);
}

double low_precision(at::Device device) {
  const auto student = small_student(device, at::kFloat);
  const at::NoGradGuard no_grad;
  const Tensor tokens = at::randint(50, {2, 48}, at::kLong).to(device);
  const Tensor full = student->forward_hidden(tokens);
  student->set_compute_dtype(at::kBFloat16);
  return relative(student->forward_hidden(tokens), full);
}

std::vector<Check> checks(at::Device device) {
  const auto on = [device](double (*check)(at::Device)) { return [device, check] { return check(device); }; };
  return {
      {"mLSTM: chunkwise = recurrent, chunks of 1 to 128", 1e-10, on(mlstm_forms)},
      {"mLSTM: a split sequence with its state = the whole", 1e-10, on(mlstm_split)},
      {"mLSTM: gradient = differences", 1e-5, [device] { return best_of_three([device] { return mlstm_gradient(device); }); }},
      {"sLSTM: a split sequence with its state = the whole", 1e-10, on(slstm_split)},
      {"sLSTM: a reset = two documents apart", 1e-10, on(slstm_reset)},
      {"sLSTM: gradient = differences", 1e-5, on(slstm_gradient)},
      {"head loss: tiles = full logits (CE, T^2 KL)", 1e-10, on(loss_value)},
      {"head loss: gradient = differences", 1e-5, on(loss_gradient)},
      {"head loss: nothing to learn from equal models", 1e-12, on(loss_of_equals)},
      {"head loss: masked positions never matter", 1e-12, on(loss_mask)},
      {"schedule: the paper's alpha at steps 0, 1, 10, 1000", 1e-6, on(schedule_values)},
      {"student: token by token = whole sequence, state constant", 1e-10, on(decode_equals_forward)},
      {"student: bfloat16 near float32", 5e-2, on(low_precision)},
  };
}

void run(const std::string& device_name) {
  const at::Device device = ops::parse_device(device_name);
  at::manual_seed(static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()));
  fmt::print("device {}\n", device.str());
  int failures = 0;
  const double begin = monotonic_seconds();
  for (const auto& check : checks(device)) {
    const double error = check.error();
    const bool is_good = error <= check.bound;
    failures += is_good ? 0 : 1;
    fmt::print("{}  {:<58} error {:.1e}, at most {:.0e}\n", is_good ? "ok  " : "FAIL", check.name, error, check.bound);
  }
  fmt::print("{} in {}\n", failures == 0 ? "all good" : fmt::format("{} FAILED", failures), format_duration(monotonic_seconds() - begin));
  if (failures > 0)
    throw DeviceError("selfcheck: {} checks failed on {}: do not trust results of this machine; please report it", failures, device.str());
}

}  // namespace

void add_selfcheck_command(CLI::App& app) {
  auto device = std::make_shared<std::string>("auto");
  CLI::App* command = app.add_subcommand("selfcheck", "Check losses and kernels on this machine and device, in under a minute");
  command->add_option("--device", *device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  command->callback([device] { run(*device); });
}

}  // namespace distil_xlstm::cli
