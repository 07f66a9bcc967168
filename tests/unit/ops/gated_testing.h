// What the tests of cells with a matrix state share: sizes, and inputs on a device.
#pragma once

#include <string>
#include <vector>

#include "op_testing.h"
#include "ops/gated_inputs.h"

namespace distil_xlstm::testing {

struct Case {
  int64_t B, S, H, K, V;
  bool with_starts = false, with_state = false;
  double gate_scale = 1.0;
};

inline std::string name(const Case& c) {
  return fmt::format("B={} S={} H={} K={} V={} starts={} state={} gates x{}", c.B, c.S, c.H, c.K, c.V, c.with_starts, c.with_state,
                     c.gate_scale);
}

inline std::vector<int64_t> chunk_sizes(int64_t S) {
  return {1, 2, 5, 16, 32, 64, S, S + 3};
}

inline ops::GatedInputs to(const ops::GatedInputs& in, at::Device device, at::ScalarType type) {
  const auto as = [&](const Tensor& x) { return x.to(device, type); };
  return {as(in.q_BSHK), as(in.k_BSHK), as(in.v_BSHV), as(in.igate_BSH), as(in.fgate_BSH), in.is_start_BS};
}

}  // namespace distil_xlstm::testing
