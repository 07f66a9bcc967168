// Golden models, and a source of weights in memory.
#pragma once

#include <cstring>
#include <map>

#include "base/error.h"
#include "base/half.h"
#include "io/model_files.h"
#include "io/safetensors.h"
#include "support/source_directory.h"
#include "teacher/families.h"
#include "teacher/teacher.h"
#include "teacher/weights.h"
#include "unit/nn/nn_testing.h"

namespace distil_xlstm::testing {

inline fs::path golden_model(const std::string& name) {
  return golden_directory() / "teacher" / name;
}

// The tensors of a golden file, copied.
inline std::map<std::string, Tensor> read_tensors(const fs::path& path) {
  const std::map<io::DType, at::ScalarType> types = {{io::DType::f32, at::kFloat}, {io::DType::i64, at::kLong}, {io::DType::u8, at::kByte}};
  const io::SafetensorsFile file(path);
  std::map<std::string, Tensor> tensors;
  for (const io::TensorView& view : file.tensors()) {
    Tensor tensor = at::empty(view.shape, types.at(view.dtype));
    std::memcpy(tensor.data_ptr(), view.bytes.data(), view.bytes.size());
    tensors[view.name] = tensor;
  }
  return tensors;
}

// Random weights for a configuration, stored as float32 or bfloat16; `is_plain` false makes them readable as floats only, as quantised
// files are.
class MemoryWeights : public io::WeightSource {
 public:
  explicit MemoryWeights(const nn::TransformerConfig& config, io::DType dtype = io::DType::f32, bool is_plain = true)
      : dtype_(dtype), is_plain_(is_plain) {
    for (const teacher::TensorSpec& spec : teacher::tensor_specs(config)) add(spec.name, spec.shape);
  }

  void add(const std::string& name, const std::vector<int64_t>& shape) {
    Tensor values = at::randn(shape) * (shape.size() == 2 ? 1.5 / std::sqrt(static_cast<double>(shape[1])) : 0.3);
    if (name.find("norm") != std::string::npos) values.add_(1);
    values_[name] = dtype_ == io::DType::bf16 ? values.to(at::kBFloat16) : values;
  }
  void set(const std::string& name, const Tensor& value) { values_[name] = value; }
  void remove(const std::string& name) { values_.erase(name); }
  [[nodiscard]] const Tensor& value(const std::string& name) const { return values_.at(name); }

  [[nodiscard]] std::vector<std::string> names() const override {
    std::vector<std::string> result;
    for (const auto& [name, value] : values_) result.push_back(name);
    return result;
  }
  [[nodiscard]] bool contains(std::string_view name) const override { return values_.contains(std::string(name)); }
  [[nodiscard]] io::TensorView view(std::string_view name) const override {
    const Tensor& value = values_.at(std::string(name));
    return {std::string(name), dtype_, value.sizes().vec(), {static_cast<const std::byte*>(value.const_data_ptr()), value.nbytes()}};
  }
  void read_float(std::string_view name, int64_t begin, int64_t end, float* out) const override {
    const Tensor part = values_.at(std::string(name)).view(-1).slice(0, begin, end).to(at::kFloat);
    std::memcpy(out, part.const_data_ptr<float>(), part.nbytes());
  }
  [[nodiscard]] bool is_plain(std::string_view) const override { return is_plain_; }
  [[nodiscard]] std::string origin() const override { return "memory"; }

 private:
  io::DType dtype_;
  bool is_plain_;
  std::map<std::string, Tensor> values_;
};

}  // namespace distil_xlstm::testing
