// The trainable tensors of a student: names, shapes and initial distributions (docs/mathematics.md 2, 3, 5). No LibTorch.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/random.h"
#include "student/config.h"

namespace distil_xlstm::student {

// Which tensors the package's backends store in orders of their own (docs/mathematics.md 2).
enum class ParameterRole { plain, slstm_recurrent, slstm_bias };

struct ParameterSpec {
  std::string name;            // `xlstm_block_stack.blocks.0.xlstm_norm.weight`
  std::vector<int64_t> shape;  // ours; R is [H, K, 4, K] and b is [H, 4, K]
  std::function<void(Random&, std::span<double>)> initialize;
  ParameterRole role = ParameterRole::plain;

  [[nodiscard]] int64_t num_elements() const;
};

// In the order of the blocks; frozen tensors (embedding, head) are not among them.
std::vector<ParameterSpec> parameter_specs(const StudentConfig& config);

// "xlstm_block_stack.blocks.3."
std::string block_prefix(int64_t block);

}  // namespace distil_xlstm::student
