// The part of `selfcheck` that runs the kernels of training in their own types: float32, and on a GPU bfloat16 and float16.
#include <algorithm>

#include "cli/selfcheck.h"
#include "ops/blockdiag.h"
#include "ops/causal_conv.h"
#include "ops/device.h"
#include "ops/gated.h"
#include "ops/head_loss.h"
#include "ops/mlstm.h"
#include "ops/mlstm_gates.h"
#include "ops/norm.h"
#include "ops/slstm.h"
#include "student/model.h"

namespace distil_xlstm::cli {
namespace {

struct Input {
  Tensor value;             // float64 on the CPU
  bool stays_wide = false;  // a parameter or a gate: float32 where the others are half
};

// A differentiable operation at one point; `run` computes in the type it is given.
struct Operation {
  std::vector<Input> inputs;
  std::function<Tensor(const std::vector<Tensor>&, at::ScalarType)> run;
};

Tensor draw(at::IntArrayRef sizes, double scale = 1.0) {
  return at::randn(sizes, at::kDouble) * scale;
}

// Documents that begin inside rows.
Tensor draw_starts(int64_t B, int64_t S) {
  return (at::rand({B, S}) < 0.05).to(at::kByte);
}

// The output, then the gradient of each input for `weight` at the output.
std::vector<Tensor> run_with_gradients(const Operation& operation, const std::vector<Tensor>& inputs, at::ScalarType type,
                                       const Tensor& weight) {
  std::vector<Tensor> leaves, results;
  for (const auto& input : inputs) leaves.push_back(input.detach().clone().requires_grad_(true));
  const Tensor out = operation.run(leaves, type);
  out.backward(weight.to(out.device(), out.scalar_type()));
  results.push_back(out.detach());
  for (const auto& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

// Worst relative error of the output and of each gradient, both sides from the same rounded inputs.
double error_of(const Operation& operation, at::Device device, at::ScalarType type) {
  std::vector<Tensor> exact, moved;
  for (const auto& [value, stays_wide] : operation.inputs) {
    const Tensor rounded = value.to(type);
    exact.push_back(rounded.to(at::kDouble));
    moved.push_back(rounded.to(device, stays_wide ? at::kFloat : type));
  }
  Tensor weight;
  {
    const at::NoGradGuard no_grad;
    weight = at::randn_like(operation.run(exact, at::kDouble)).to(type).to(at::kDouble);
  }
  const auto expected = run_with_gradients(operation, exact, at::kDouble, weight), got = run_with_gradients(operation, moved, type, weight);
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, relative(got[i], expected[i]));
  return worst;
}

Operation norm_operation() {
  return {{{draw({70, 96})}, {draw({96}, 0.1), true}},
          [](const auto& x, at::ScalarType) { return ops::residual_layer_norm(x[0], x[1], 3); }};
}

Operation convolution_operation() {
  return {{{draw({3, 50, 96})}, {draw({96, 1, 4}, 0.5), true}, {draw({96}, 0.5), true}},
          [starts = draw_starts(3, 50)](const auto& x, at::ScalarType) {
            return ops::causal_conv_silu(x[0], x[1], x[2], {}, starts.to(x[0].device())).y_BSF;
          }};
}

Operation projection_operation() {
  return {{{draw({70, 96})}, {draw({70, 96})}, {draw({24, 4, 4}), true}, {draw({24, 4, 4}), true}, {draw({24, 4, 4}), true}},
          [](const auto& x, at::ScalarType type) {
            const auto qkv = ops::qkv_projection(x[0], x[1], {x[2], {}}, {x[3], {}}, {x[4], {}}, type);
            return at::cat({qkv[0], qkv[1], qkv[2]}, 1);
          }};
}

Operation gate_operation() {
  std::vector<Input> inputs = {{draw({70, 96})}, {draw({70, 96})}};
  for (int gate = 0; gate < 4; ++gate) inputs.push_back({draw({3, 32, 32}, 0.2), true});
  return {std::move(inputs),
          [](const auto& x, at::ScalarType type) { return ops::slstm_gate_projection(x[0], x[1], x[2], x[3], x[4], x[5], type); }};
}

Operation mlstm_gate_operation() {
  std::vector<Input> inputs = {{draw({70, 96})}, {draw({70, 96})}, {draw({70, 96})}};
  for (int gate = 0; gate < 2; ++gate) inputs.insert(inputs.end(), {{draw({3, 288}, 0.1), true}, {draw({3}), true}});
  return {std::move(inputs), [](const auto& x, at::ScalarType) {
            const auto gates = ops::mlstm_gate_projection({x[0], x[1], x[2]}, {x[3], x[4], x[5], x[6]});
            return at::cat({gates.input_NH, gates.forget_NH}, 1);
          }};
}

Operation feed_forward_operation() {
  return {{{draw({70, 96})}, {draw({256, 96}, 0.1), true}, {draw({96, 128}, 0.1), true}}, [](const auto& x, at::ScalarType type) {
            const auto [gate, value] = ops::split_linear(x[0], x[1], {}, type);
            return ops::residual_linear(x[0], ops::gated_activation(gate, value, "gelu"), x[2], {}, type);
          }};
}

Operation skip_operation() {
  return {{{draw({70, 96})}, {draw({96}), true}, {draw({70, 96})}, {draw({70, 96})}},
          [](const auto& x, at::ScalarType) { return ops::skip_gate(x[0], x[1], x[2], x[3]); }};
}

// q and k above 0: without cancellation in the denominator errors stay those of the arithmetic.
Operation mlstm_operation() {
  constexpr int64_t B = 2, S = 150, H = 2, K = 64;
  return {
      {{draw({B, S, H, K}).abs()}, {draw({B, S, H, K}).abs()}, {draw({B, S, H, K})}, {draw({B, S, H}), true}, {draw({B, S, H}) + 2, true}},
      [starts = draw_starts(B, S)](const auto& x, at::ScalarType) {
        return ops::mlstm_chunkwise({x[0], x[1], x[2], x[3], x[4], starts.to(x[0].device())}, 64).h_BSHV;
      }};
}

Operation slstm_operation() {
  constexpr int64_t B = 4, S = 40, H = 2, K = 32;
  return {{{draw({B, S, H, 4, K})}, {draw({H, K, 4, K}, 0.1), true}, {draw({H, 4, K}), true}},
          [starts = draw_starts(B, S)](const auto& x, at::ScalarType) {
            return ops::slstm_scan(x[0], x[1], x[2], {}, starts.to(x[0].device())).y_BSHK;
          }};
}

// A vocabulary that is a multiple of nothing, and masked positions.
double head_loss_error(at::Device device, at::ScalarType type) {
  constexpr int64_t B = 2, S = 40, V = 1031;
  const std::vector<Tensor> models = {draw({B, S, 64}), draw({V, 64}, 0.2), draw({B, S, 96}), draw({V, 96}, 0.2)};
  const Tensor targets = at::randint(V, {B, S}, at::kLong), mask = (at::rand({B, S}) < 0.8).to(at::kByte);
  mask[0][0] = 1;
  const ops::HeadLossOptions options{.ce_weight = 0.3, .kd_weight = 0.7, .temperature = 2.0};
  const auto run = [&](at::Device where, at::ScalarType in_type) {
    std::vector<Tensor> x;
    for (const auto& model : models) x.push_back(model.to(type).to(where, in_type));
    return ops::head_losses(x[0], x[1], x[2], x[3], targets.to(where), mask.to(where), options, 1.0);
  };
  const auto got = run(device, type), expected = run(at::kCPU, at::kDouble);
  return std::max(relative(got.sums.slice(0, 0, 2), expected.sums.slice(0, 0, 2)),
                  relative(got.grad_student_hidden_BSD, expected.grad_student_hidden_BSD));
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
    return student::Student::create(config, frozen, frozen, 1, where, parameter_type);
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
  return std::max(relative(out, expected), relative(gradients, expected_gradients));
}

}  // namespace

std::vector<Check> precision_checks(at::Device device) {
  const std::vector<std::pair<const char*, Operation (*)()>> operations = {{"norm", norm_operation},
                                                                           {"convolution", convolution_operation},
                                                                           {"q, k, v projections", projection_operation},
                                                                           {"sLSTM gates", gate_operation},
                                                                           {"mLSTM gates", mlstm_gate_operation},
                                                                           {"feed-forward", feed_forward_operation},
                                                                           {"skip gate", skip_operation},
                                                                           {"mLSTM", mlstm_operation},
                                                                           {"sLSTM", slstm_operation}};
  std::vector<at::ScalarType> types = {at::kFloat};
  if (!device.is_cpu()) types.insert(types.end(), {at::kBFloat16, at::kHalf});
  std::vector<Check> checks;
  for (const auto type : types) {
    const double bound = type == at::kFloat ? 1e-4 : 2e-2;
    const auto add = [&](const std::string& name, double limit, const std::function<double()>& error) {
      checks.push_back({fmt::format("{} in {}: values and gradients", name, ops::precision_name(type)), limit,
                        [error] { return best_of_three(error); }});
    };
    for (const auto& [name, make] : operations) add(name, bound, [make = make, device, type] { return error_of(make(), device, type); });
    add("head loss", bound, [device, type] { return head_loss_error(device, type); });
    add("student", type == at::kFloat ? 1e-3 : 1e-1, [device, type] { return student_error(device, type); });
  }
  return checks;
}

}  // namespace distil_xlstm::cli
