// Operations of training at sizes of the caller's choice, on random inputs: selfcheck compares them with float64, bench times them too.
// Letters: N tokens, B batch, S sequence, D, F widths, P feed-forward width, H heads, K head width.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "config/choices.h"
#include "ops/tensor.h"

namespace distil_xlstm::measure {

struct OperationInput {
  Tensor value;             // float64 on the CPU
  bool stays_wide = false;  // a parameter or a gate: float32 where the others are half
};

// A differentiable operation at one point; `run` computes in the type it is given.
struct Operation {
  std::vector<OperationInput> inputs;
  std::function<std::vector<Tensor>(const std::vector<Tensor>&, at::ScalarType)> run;  // its outputs
};

// Rows are whole documents, or documents begin inside them.
enum class Borders { none, inside };

Operation norm_operation(int64_t N, int64_t D, int64_t num_groups);
Operation convolution_operation(int64_t B, int64_t S, int64_t F, int64_t num_taps, Borders borders);
Operation projection_operation(int64_t N, int64_t F, int64_t block);  // q, k, v of the mLSTM
Operation gate_operation(int64_t N, int64_t H, int64_t K);            // the sLSTM's four gates
Operation mlstm_gate_operation(int64_t N, int64_t H, int64_t F);      // the mLSTM's two gates
Operation feed_forward_operation(int64_t N, int64_t D, int64_t P, config::Activation act);
Operation skip_operation(int64_t N, int64_t F);
Operation mlstm_operation(int64_t B, int64_t S, int64_t H, int64_t K, int64_t chunk_size, Borders borders);
Operation slstm_operation(int64_t B, int64_t S, int64_t H, int64_t K, Borders borders);

// The inputs as `run` takes them in this type, on the device.
std::vector<Tensor> inputs_of(const Operation& operation, at::Device device, at::ScalarType type);

// Worst relative errors of outputs and gradients against float64 on the CPU, both sides from the same rounded inputs.
struct OperationErrors {
  double all = 0.0;
  double wide = 0.0;  // of those that are float32 whatever the type: gates' pre-activations, gradients of parameters
};
OperationErrors errors_of(const Operation& operation, at::Device device, at::ScalarType type);

// The largest of some errors; not a number where one of them is not.
double largest_error(std::initializer_list<double> errors);

// |out - reference| / |reference|, in float64 on the CPU.
double relative(const Tensor& out, const Tensor& reference);

// Normal values, float64 on the CPU.
Tensor draw(at::IntArrayRef sizes, double scale = 1.0);

// Documents that begin inside rows: uint8 [B, S].
Tensor draw_starts(int64_t B, int64_t S);

}  // namespace distil_xlstm::measure
