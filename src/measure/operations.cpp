#include "measure/operations.h"

#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "ops/blockdiag.h"
#include "ops/causal_conv.h"
#include "ops/gated.h"
#include "ops/mlstm.h"
#include "ops/mlstm_gates.h"
#include "ops/norm.h"
#include "ops/slstm.h"

namespace distil_xlstm::measure {
namespace {

// The outputs, then the gradient of each input.
std::vector<Tensor> run_with_gradients(const Operation& operation, const std::vector<Tensor>& inputs, at::ScalarType type,
                                       const std::vector<Tensor>& output_gradients) {
  std::vector<Tensor> leaves, gradients, results;
  for (const auto& input : inputs) leaves.push_back(input.detach().clone().requires_grad_(true));
  const auto outputs = operation.run(leaves, type);
  for (size_t i = 0; i < outputs.size(); ++i) gradients.push_back(output_gradients[i].to(outputs[i].device(), outputs[i].scalar_type()));
  torch::autograd::backward(outputs, gradients);
  for (const auto& output : outputs) results.push_back(output.detach());
  for (const auto& leaf : leaves) results.push_back(leaf.grad());
  return results;
}

Tensor starts_on(const Tensor& starts_BS, const Tensor& like) {
  return starts_BS.defined() ? starts_BS.to(like.device()) : starts_BS;
}

}  // namespace

Tensor draw(at::IntArrayRef sizes, double scale) {
  return at::randn(sizes, at::kDouble) * scale;
}

Tensor draw_starts(int64_t B, int64_t S) {
  return (at::rand({B, S}) < 0.05).to(at::kByte);
}

double relative(const Tensor& out, const Tensor& reference) {
  const Tensor wide = reference.detach().to(at::kCPU, at::kDouble);
  return ((out.detach().to(at::kCPU, at::kDouble) - wide).norm() / wide.norm().clamp_min(1e-30)).item<double>();
}

std::vector<Tensor> inputs_of(const Operation& operation, at::Device device, at::ScalarType type) {
  std::vector<Tensor> inputs;
  for (const auto& input : operation.inputs) {
    const auto own = input.stays_wide && type != at::kDouble ? at::kFloat : type;
    inputs.push_back(input.value.to(own).to(device));
  }
  return inputs;
}

double largest_error(std::initializer_list<double> errors) {
  double largest = 0.0;
  for (const double error : errors) {
    if (std::isnan(error)) return error;
    largest = std::max(largest, error);
  }
  return largest;
}

OperationErrors errors_of(const Operation& operation, at::Device device, at::ScalarType type) {
  const auto inputs = inputs_of(operation, device, type);
  std::vector<Tensor> exact, weights;
  for (const auto& input : inputs) exact.push_back(input.to(at::kCPU, at::kDouble));
  {
    // Gradients of the outputs are rounded as the outputs are.
    const at::NoGradGuard no_grad;
    for (const auto& output : operation.run(inputs, type)) weights.push_back(at::randn_like(output).to(at::kCPU, at::kDouble));
  }
  const auto expected = run_with_gradients(operation, exact, at::kDouble, weights),
             got = run_with_gradients(operation, inputs, type, weights);
  OperationErrors worst;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = relative(got[i], expected[i]);
    worst.all = largest_error({worst.all, error});
    if (got[i].scalar_type() == at::kFloat) worst.wide = largest_error({worst.wide, error});
  }
  return worst;
}

Operation norm_operation(int64_t N, int64_t D, int64_t num_groups) {
  return {{{draw({N, D})}, {draw({D}, 0.1), true}},
          [num_groups](const auto& x, at::ScalarType) { return std::vector{ops::residual_layer_norm(x[0], x[1], num_groups)}; }};
}

Operation convolution_operation(int64_t B, int64_t S, int64_t F, int64_t num_taps, Borders borders) {
  return {{{draw({B, S, F})}, {draw({F, 1, num_taps}, 0.5), true}, {draw({F}, 0.5), true}},
          [starts = borders == Borders::inside ? draw_starts(B, S) : Tensor()](const auto& x, at::ScalarType) {
            return std::vector{ops::causal_conv_silu(x[0], x[1], x[2], {}, starts_on(starts, x[0])).y_BSF};
          }};
}

Operation projection_operation(int64_t N, int64_t F, int64_t block) {
  const auto weight = [&] { return OperationInput{draw({F / block, block, block}), true}; };
  return {{{draw({N, F})}, {draw({N, F})}, weight(), weight(), weight()}, [](const auto& x, at::ScalarType type) {
            const auto qkv = ops::qkv_projection(x[0], x[1], {x[2], {}}, {x[3], {}}, {x[4], {}}, type).qkv_NF;
            return std::vector(qkv.begin(), qkv.end());
          }};
}

Operation gate_operation(int64_t N, int64_t H, int64_t K) {
  std::vector<OperationInput> inputs = {{draw({N, H * K})}, {draw({N, H * K})}};
  for (int gate = 0; gate < 4; ++gate) inputs.push_back({draw({H, K, K}, 0.2), true});
  return {std::move(inputs), [](const auto& x, at::ScalarType type) {
            return std::vector{ops::slstm_gate_projection(x[0], x[1], x[2], x[3], x[4], x[5], type)};
          }};
}

Operation mlstm_gate_operation(int64_t N, int64_t H, int64_t F) {
  std::vector<OperationInput> inputs = {{draw({N, F})}, {draw({N, F})}, {draw({N, F})}};
  for (int gate = 0; gate < 2; ++gate) inputs.insert(inputs.end(), {{draw({H, 3 * F}, 0.1), true}, {draw({H}), true}});
  return {std::move(inputs), [](const auto& x, at::ScalarType) {
            const auto gates = ops::mlstm_gate_projection({x[0], x[1], x[2]}, {x[3], x[4], x[5], x[6]});
            return std::vector{gates.input_NH, gates.forget_NH};
          }};
}

Operation feed_forward_operation(int64_t N, int64_t D, int64_t P, config::Activation act) {
  return {{{draw({N, D})}, {draw({2 * P, D}, 0.1), true}, {draw({D, P}, 0.1), true}}, [act](const auto& x, at::ScalarType type) {
            const auto [gate, value] = ops::split_linear(x[0], x[1], {}, type);
            return std::vector{ops::residual_linear(x[0], ops::gated_activation(gate, value, act), x[2], {}, type)};
          }};
}

Operation skip_operation(int64_t N, int64_t F) {
  return {{{draw({N, F})}, {draw({F}), true}, {draw({N, F})}, {draw({N, F})}},
          [](const auto& x, at::ScalarType) { return std::vector{ops::skip_gate(x[0], x[1], x[2], x[3])}; }};
}

// q and k above 0: without cancellation in the denominator errors stay those of the arithmetic.
Operation mlstm_operation(int64_t B, int64_t S, int64_t H, int64_t K, int64_t chunk_size, Borders borders) {
  return {
      {{draw({B, S, H, K}).abs()}, {draw({B, S, H, K}).abs()}, {draw({B, S, H, K})}, {draw({B, S, H}), true}, {draw({B, S, H}) + 2, true}},
      [starts = borders == Borders::inside ? draw_starts(B, S) : Tensor(), chunk_size](const auto& x, at::ScalarType) {
        return std::vector{ops::mlstm_chunkwise({x[0], x[1], x[2], x[3], x[4], starts_on(starts, x[0])}, chunk_size).h_BSHV};
      }};
}

Operation slstm_operation(int64_t B, int64_t S, int64_t H, int64_t K, Borders borders) {
  return {{{draw({B, S, H, 4, K})}, {draw({H, K, 4, K}, 0.1), true}, {draw({H, 4, K}), true}},
          [starts = borders == Borders::inside ? draw_starts(B, S) : Tensor()](const auto& x, at::ScalarType) {
            return std::vector{ops::slstm_scan(x[0], x[1], x[2], {}, starts_on(starts, x[0])).y_BSHK};
          }};
}

}  // namespace distil_xlstm::measure
