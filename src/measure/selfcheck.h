// What the parts of `selfcheck` share. Letters: B batch, S sequence, H heads, G gates, K head width, V vocabulary (or value width in the
// mLSTM), D width.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ops/tensor.h"

namespace distil_xlstm::measure {

struct Check {
  std::string name;
  double bound;
  std::function<double()> error;  // what must not exceed the bound
};

// The best of three draws: the mLSTM's normaliser has a kink (max of two terms), and a draw that lies on it says nothing. A wrong result
// fails all the same.
double best_of_three(const std::function<double()>& draw);

// All of them.
std::vector<Check> all_checks(at::Device device);

// Teachers of every family and students of both mixers, token by token beside the whole text, in every type; and that no weight changes.
std::vector<Check> decoding_checks(at::Device device);

// Kernels and losses, values and gradients, in the types that training uses on `device` against float64 on the CPU.
std::vector<Check> precision_checks(at::Device device);

}  // namespace distil_xlstm::measure
