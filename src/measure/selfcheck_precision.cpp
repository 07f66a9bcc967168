// The part of `selfcheck` that runs the kernels of training in their own types: float32, and on a GPU bfloat16 and float16.
#include <algorithm>

#include "measure/operations.h"
#include "measure/selfcheck.h"
#include "ops/device.h"
#include "ops/head_loss.h"
#include "student/paper/student.h"

namespace distil_xlstm::measure {
namespace {

// A vocabulary that is a multiple of nothing, and masked positions.
double head_loss_error(at::Device device, at::ScalarType type) {
  constexpr int64_t B = 2, S = 40, V = 1031;
  const std::vector<Tensor> models = {draw({B, S, 64}), draw({V, 64}, 0.2), draw({B, S, 96}), draw({V, 96}, 0.2)};
  const Tensor targets = at::randint(V, {B, S}, at::kLong), mask = (at::rand({B, S}) < 0.8).to(at::kByte);
  mask[0][0] = 1;
  const ops::HeadObjective objective{.ce_weight = 0.3, .kd_weight = 0.7, .temperature = 2.0};
  const auto run = [&](at::Device where, at::ScalarType in_type) {
    std::vector<Tensor> x;
    for (const auto& model : models) x.push_back(model.to(type).to(where, in_type));
    return ops::head_losses(x[0], x[1], x[2], x[3], targets.to(where), mask.to(where), objective, 1.0);
  };
  const auto got = run(device, type), expected = run(at::kCPU, at::kDouble);
  return largest_error({relative(got.sums.slice(0, 0, 2), expected.sums.slice(0, 0, 2)),
                        relative(got.grad_student_hidden_BSD, expected.grad_student_hidden_BSD)});
}

// All parameters' gradients together: some are differences of large sums.
std::pair<Tensor, Tensor> student_results(student::Student& student, const Tensor& tokens_BS, const Tensor& starts_BS, const Tensor& weight,
                                          at::ScalarType type) {
  const auto out = student.forward(tokens_BS.to(student.device()), starts_BS.to(student.device()), {.compute_dtype = type}).last_hidden_BSD;
  out.backward(weight.to(out.device(), out.scalar_type()));
  std::vector<Tensor> gradients;
  for (const auto& [name, parameter] : student.parameters()) {
    if (parameter.grad().defined()) gradients.push_back(parameter.grad().flatten().to(at::kCPU, at::kDouble));
  }
  return {out.detach(), at::cat(gradients)};
}

double student_error(at::Device device, at::ScalarType type) {
  student::StudentConfig config;
  config.vocab_size = 50;
  config.embedding_dim = 64;
  config.num_blocks = 3;
  config.context_length = 64;
  config.slstm_at = {1};
  config.chunk_size = 16;
  const Tensor embedding = at::randn({50, 64});
  const auto make = [&](at::Device where, at::ScalarType parameter_type) {
    const Tensor frozen = embedding.to(where, parameter_type);
    return student::PaperStudent::create(config, frozen, frozen, 1, where, parameter_type);
  };
  const auto exact = make(at::kCPU, at::kDouble), student = make(device, at::kFloat);
  {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < exact->parameters().size(); ++i)
      exact->parameters()[i].second.copy_(student->parameters()[i].second.to(at::kCPU, at::kDouble));
  }
  const Tensor tokens = at::randint(50, {2, 48}, at::kLong), starts = draw_starts(2, 48), weight = draw({2, 48, 64});
  const auto [out, gradients] = student_results(*student, tokens, starts, weight, type);
  const auto [expected, expected_gradients] = student_results(*exact, tokens, starts, weight, at::kDouble);
  return largest_error({relative(out, expected), relative(gradients, expected_gradients)});
}

}  // namespace

std::vector<Check> precision_checks(at::Device device) {
  const std::vector<std::pair<const char*, std::function<Operation()>>> operations = {
      {"norm", [] { return norm_operation(70, 96, 3); }},
      {"convolution", [] { return convolution_operation(3, 50, 96, 4, Borders::inside); }},
      {"q, k, v projections", [] { return projection_operation(70, 96, 4); }},
      {"sLSTM gates", [] { return gate_operation(70, 3, 32); }},
      {"mLSTM gates", [] { return mlstm_gate_operation(70, 3, 96); }},
      {"feed-forward", [] { return feed_forward_operation(70, 96, 128, config::Activation::gelu); }},
      {"skip gate", [] { return skip_operation(70, 96); }},
      {"mLSTM", [] { return mlstm_operation(2, 150, 2, 64, 64, Borders::inside); }},
      {"sLSTM", [] { return slstm_operation(4, 40, 2, 32, Borders::inside); }}};
  std::vector<at::ScalarType> types = {at::kFloat};
  if (!device.is_cpu()) types.insert(types.end(), {at::kBFloat16, at::kHalf});
  std::vector<Check> checks;
  for (const auto type : types) {
    const double bound = type == at::kFloat ? 1e-4 : 2e-2;
    const auto add = [&](const std::string& name, double limit, const std::function<double()>& error) {
      checks.push_back({fmt::format("{} in {}: values and gradients", name, ops::precision_name(type)), limit,
                        [error] { return best_of_three(error); }});
    };
    for (const auto& [name, make] : operations)
      add(name, bound, [make = make, device, type] { return errors_of(make(), device, type).all; });
    // Their sums are float32 whatever the inputs are, and go into exponentials.
    add("mLSTM gates' float32 results", 1e-4, [device, type] { return errors_of(mlstm_gate_operation(70, 3, 96), device, type).wide; });
    add("head loss", bound, [device, type] { return head_loss_error(device, type); });
    add("student", type == at::kFloat ? 1e-3 : 1e-1, [device, type] { return student_error(device, type); });
  }
  return checks;
}

}  // namespace distil_xlstm::measure
