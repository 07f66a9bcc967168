// distil-xlstm selfcheck: the identities that a right loss and right kernels must meet, on this machine and device, in under a minute.
#include "measure/selfcheck.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "distill/schedule.h"
#include "measure/operations.h"
#include "ops/head_loss.h"
#include "ops/mlstm.h"
#include "ops/norm.h"
#include "ops/slstm.h"
#include "student/paper/student.h"

namespace distil_xlstm::measure {

double best_of_three(const std::function<double()>& draw) {
  const std::array<double, 3> errors = {draw(), draw(), draw()};
  return std::isnan(largest_error({errors[0], errors[1], errors[2]})) ? std::nan("") : *std::min_element(errors.begin(), errors.end());
}

namespace {

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

// Directional derivative against central differences in float64, relative.
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

ops::HeadLosses run_loss(const LossCase& c, const ops::HeadObjective& objective, bool with_gradient = true) {
  return ops::head_losses(c.student, c.student_head, c.teacher, c.teacher_head, c.targets, c.mask, objective, 1.0,
                          {.with_gradient = with_gradient});
}

double loss_value(at::Device device) {
  const LossCase c = loss_case(device);
  const double temperature = 1.7;
  const Tensor keep = c.mask.to(at::kDouble);
  const Tensor student = c.student.matmul(c.student_head.t()), teacher = c.teacher.matmul(c.teacher_head.t());
  const Tensor ce = -student.log_softmax(-1).gather(-1, c.targets.unsqueeze(-1)).squeeze(-1);
  const Tensor p = (teacher / temperature).softmax(-1);
  const Tensor kl = (p * (p.log() - (student / temperature).log_softmax(-1))).sum(-1) * temperature * temperature;
  const auto losses = run_loss(c, {.temperature = temperature}, /*with_gradient=*/false);
  return relative(losses.sums.slice(0, 0, 2), at::stack({(ce * keep).sum(), (kl * keep).sum()}));
}

double loss_gradient(at::Device device) {
  LossCase c = loss_case(device);
  const ops::HeadObjective objective{.ce_weight = 0.3, .kd_weight = 0.7, .temperature = 2.0};
  const Tensor gradient = run_loss(c, objective).grad_student_hidden_BSD;
  const Tensor point = c.student, direction = at::randn_like(point);
  const auto value = [&](double step) {
    c.student = point + step * direction;
    const Tensor sums = run_loss(c, objective, /*with_gradient=*/false).sums.to(at::kCPU);
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

// The same positions in one call and in two.
double loss_accumulation(at::Device device) {
  const LossCase c = loss_case(device);
  const ops::HeadObjective objective{.ce_weight = 0.4, .kd_weight = 0.6, .temperature = 1.5};
  const auto whole = run_loss(c, objective);
  const auto part = [&](int64_t row) {
    LossCase half = c;
    for (Tensor LossCase::* member : {&LossCase::student, &LossCase::teacher, &LossCase::targets, &LossCase::mask})
      half.*member = (c.*member).slice(0, row, row + 1);
    return run_loss(half, objective);
  };
  const auto first = part(0), second = part(1);
  return relative(first.sums + second.sums, whole.sums) +
         relative(at::cat({first.grad_student_hidden_BSD, second.grad_student_hidden_BSD}), whole.grad_student_hidden_BSD);
}

// Rows of both heads that pad the vocabulary, with logits of -1000: through a hidden channel that is always 1.
double loss_padding(at::Device device) {
  LossCase c = loss_case(device);
  const ops::HeadObjective objective{.ce_weight = 0.4, .kd_weight = 0.6, .temperature = 1.5};
  const auto plain = run_loss(c, objective);
  for (const auto& [hidden, head] : {std::pair(&c.student, &c.student_head), std::pair(&c.teacher, &c.teacher_head)}) {
    *hidden = at::cat({*hidden, at::ones_like(hidden->slice(2, 0, 1))}, 2);
    *head = at::cat({*head, at::zeros_like(head->slice(1, 0, 1))}, 1);
    Tensor padding = at::zeros_like(head->slice(0, 0, 31));
    padding.slice(1, -1).fill_(-1000);
    *head = at::cat({*head, padding});
  }
  const auto padded = run_loss(c, objective);
  return relative(padded.sums.slice(0, 0, 2), plain.sums.slice(0, 0, 2)) +
         relative(padded.grad_student_hidden_BSD.slice(2, 0, -1), plain.grad_student_hidden_BSD);
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
  return student::PaperStudent::create(config, embedding, embedding, 1, device, dtype);
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

// Hidden states, and all gradients of a weighted sum of them in one vector.
std::pair<Tensor, Tensor> forward_backward(student::Student& student, const Tensor& tokens_BS, const Tensor& is_start_BS,
                                           const Tensor& weight_BSD) {
  for (const auto& [name, parameter] : student.parameters()) parameter.mutable_grad() = Tensor();
  const Tensor hidden = student.forward(tokens_BS, is_start_BS, {.compute_dtype = at::kDouble}).last_hidden_BSD;
  (hidden * weight_BSD).sum().backward();
  std::vector<Tensor> gradients;
  for (const auto& [name, parameter] : student.parameters()) gradients.push_back(parameter.grad().flatten());
  return {hidden.detach(), at::cat(gradients)};
}

double student_accumulation(at::Device device) {
  const auto student = small_student(device, at::kDouble);
  const Tensor tokens = at::randint(50, {2, 21}, at::kLong).to(device), weight = random({2, 21, 32}, device);
  const auto [hidden, gradients] = forward_backward(*student, tokens, {}, weight);
  const auto first = forward_backward(*student, tokens.slice(0, 0, 1), {}, weight.slice(0, 0, 1));
  const auto second = forward_backward(*student, tokens.slice(0, 1, 2), {}, weight.slice(0, 1, 2));
  return relative(at::cat({first.first, second.first}), hidden) + relative(first.second + second.second, gradients);
}

double student_borders(at::Device device) {
  const auto student = small_student(device, at::kDouble);
  const Tensor tokens = at::randint(50, {1, 30}, at::kLong).to(device), weight = random({1, 30, 32}, device);
  Tensor starts = at::zeros({1, 30}, at::kByte);
  starts[0][13] = 1;
  const auto [hidden, gradients] = forward_backward(*student, tokens, starts.to(device), weight);
  const auto first = forward_backward(*student, tokens.slice(1, 0, 13), {}, weight.slice(1, 0, 13));
  const auto second = forward_backward(*student, tokens.slice(1, 13, 30), {}, weight.slice(1, 13, 30));
  return relative(at::cat({first.first, second.first}, 1), hidden) + relative(first.second + second.second, gradients);
}

double low_precision(at::Device device) {
  const auto student = small_student(device, at::kFloat);
  const at::NoGradGuard no_grad;
  const Tensor tokens = at::randint(50, {2, 48}, at::kLong).to(device);
  const Tensor full = student->forward_hidden(tokens);
  student->set_compute_dtype(at::kBFloat16);
  return relative(student->forward_hidden(tokens), full);
}

}  // namespace

std::vector<Check> all_checks(at::Device device) {
  const auto on = [device](double (*check)(at::Device)) { return [device, check] { return check(device); }; };
  std::vector<Check> all = {
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
      {"head loss: a batch = two micro-batches", 1e-10, on(loss_accumulation)},
      {"head loss: padding of the vocabulary changes nothing", 1e-10, on(loss_padding)},
      {"schedule: the paper's alpha at steps 0, 1, 10, 1000", 1e-6, on(schedule_values)},
      {"student: token by token = whole sequence, state constant", 1e-10, on(decode_equals_forward)},
      {"student: a batch = two micro-batches, with gradients", 1e-10, on(student_accumulation)},
      {"student: a border = two documents apart, with gradients", 1e-10, on(student_borders)},
      {"student: bfloat16 near float32", 5e-2, on(low_precision)},
  };
  for (const auto& more : {decoding_checks(device), precision_checks(device)}) all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace distil_xlstm::measure
