// Small students with parameters that leave no term at zero, and weights in memory instead of a file.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>

#include "student/paper/mixers.h"
#include "student/paper/student.h"
#include "unit/ops/op_testing.h"

namespace distil_xlstm::student {

using testing::devices;
using testing::relative_error;
using testing::tolerance;

class MemoryWeights : public io::WeightSource {
 public:
  explicit MemoryWeights(const NamedTensors& tensors) {
    for (const auto& [name, tensor] : tensors) tensors_[name] = tensor.detach().to(at::kCPU).contiguous();
  }
  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> out;
    for (const auto& [name, tensor] : tensors_) out.push_back(name);
    return out;
  }
  [[nodiscard]] bool contains(std::string_view name) const override { return tensors_.contains(std::string(name)); }
  [[nodiscard]] io::TensorView view(std::string_view name) const override {
    const Tensor& tensor = tensors_.at(std::string(name));
    const io::DType dtype = tensor.scalar_type() == at::kDouble     ? io::DType::f64
                            : tensor.scalar_type() == at::kFloat    ? io::DType::f32
                            : tensor.scalar_type() == at::kBFloat16 ? io::DType::bf16
                                                                    : io::DType::f16;
    return {std::string(name), dtype, tensor.sizes().vec(), {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()}};
  }
  void read_float(std::string_view name, int64_t begin, int64_t end, float* out) const override {
    const Tensor values = tensors_.at(std::string(name)).flatten().narrow(0, begin, end - begin).to(at::kFloat).contiguous();
    std::copy_n(values.const_data_ptr<float>(), end - begin, out);
  }
  [[nodiscard]] bool is_plain(std::string_view) const override { return true; }
  [[nodiscard]] std::string origin() const override { return "memory"; }

  std::map<std::string, Tensor> tensors_;  // may be changed before use
};

inline io::ModelFiles memory_files(const json& config, std::shared_ptr<MemoryWeights> weights) {
  return {.kind = io::ModelKind::student,
          .path = "memory",
          .name = "memory",
          .config = config,
          .generation_config = json::object(),
          .weights = std::move(weights),
          .tokenizer = std::nullopt};
}

// Odd widths: 3 heads of 4 and of 28 (inner width 84 = 7 * 12), four blocks of both kinds.
inline StudentConfig small_config() {
  StudentConfig config;
  config.vocab_size = 23;
  config.embedding_dim = 12;
  config.num_blocks = 4;
  config.context_length = 32;
  config.slstm_at = {0, 3};
  config.slstm_num_heads = config.mlstm_num_heads = 3;
  config.mlstm_proj_factor = 6.5;
  config.round_proj_up_to_multiple_of = 12;
  config.chunk_size = 5;
  return config;
}

// Every parameter away from its special initial value (zeros, ones).
inline void perturb(Student& student, double scale = 0.3) {
  const at::NoGradGuard no_grad;
  for (const auto& [name, tensor] : student.parameters()) tensor.add_(at::randn(tensor.sizes(), at::kDouble).to(tensor.device()), scale);
}

inline std::unique_ptr<PaperStudent> small_student(const StudentConfig& config, at::Device device, at::ScalarType dtype = at::kDouble,
                                                   double perturbation = 0.3) {
  const at::TensorOptions options = at::TensorOptions().dtype(dtype);
  auto student = PaperStudent::create(config, at::randn({config.vocab_size, config.embedding_dim}, options),
                                      at::randn({config.vocab_size, config.embedding_dim}, options), 7, device, dtype);
  perturb(*student, perturbation);
  return student;
}

inline Tensor random_tokens(const StudentConfig& config, int64_t B, int64_t S) {
  return at::randint(config.vocab_size, {B, S}, at::TensorOptions().dtype(at::kLong));
}

inline StudentForwardOptions in_double() {
  return {.compute_dtype = at::kDouble};
}

// Gradients of all parameters for a fixed random projection of the output.
inline std::vector<Tensor> parameter_gradients(Student& student, const Tensor& tokens_BS, const Tensor& is_start_BS,
                                               const StudentForwardOptions& options, const Tensor& projection_BSD) {
  for (const auto& [name, tensor] : student.parameters()) tensor.mutable_grad() = Tensor();
  const StudentOutput out = student.forward(tokens_BS, is_start_BS, options);
  (out.last_hidden_BSD * projection_BSD.to(out.last_hidden_BSD.options())).sum().backward();
  std::vector<Tensor> grads;
  for (const auto& [name, tensor] : student.parameters()) grads.push_back(tensor.grad());
  return grads;
}

}  // namespace distil_xlstm::student
