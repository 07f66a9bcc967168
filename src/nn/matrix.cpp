#include "nn/matrix.h"

#include "ops/gated.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace distil_xlstm::nn {
namespace {

std::vector<int64_t> with_width(std::vector<int64_t> sizes, int64_t width) {
  sizes.back() = width;
  return sizes;
}

}  // namespace

MatrixInput matrix_input(const Tensor& x, ProductType type) {
  if (type == ProductType::fp8) return {x.sizes().vec(), {}, ops::fp8_rows(x)};
  return {x.sizes().vec(), x, {}};
}

MatrixInput rms_norm_input(const Tensor& x, const Tensor& weight, double eps, ProductType type) {
  if (type == ProductType::fp8) return {x.sizes().vec(), {}, ops::fp8_rms_norm(x, weight, eps)};
  return matrix_input(ops::rms_norm(x, weight, eps), type);
}

MatrixInput rms_norm_input_of_copy(Tensor& x, const Tensor& weight, double eps, ProductType type) {
  if (type == ProductType::fp8) {
    x = x.clone();
    return rms_norm_input(x, weight, eps, type);
  }
  auto [y, copy] = ops::rms_norm_and_copy(x, weight, eps);
  x = std::move(copy);
  return matrix_input(y, type);
}

MatrixInput swiglu_input(const Tensor& gate_up, ProductType type) {
  if (type == ProductType::fp8) return {with_width(gate_up.sizes().vec(), gate_up.size(-1) / 2), {}, ops::fp8_swiglu(gate_up)};
  return matrix_input(ops::swiglu(gate_up), type);
}

void Matrix::pack() {
  if (!ops::PackedMatrix::supports(weight_EK_)) return;
  packed_KE_ = ops::PackedMatrix(weight_EK_.t());
  weight_EK_ = Tensor();
}

void Matrix::use_fp8() {
  if (packed_KE_.defined()) {
    weight_EK_ = packed_KE_.unpacked().t();
    packed_KE_ = {};
  }
  if (!weight_EK_.defined()) return;
  dtype_ = weight_EK_.scalar_type();
  fp8_EK_ = ops::fp8_rows(weight_EK_);
  weight_EK_ = Tensor();
}

Tensor Matrix::values() const {
  if (packed_KE_.defined()) return packed_KE_.unpacked().t();
  return weight_EK_.defined() ? weight_EK_ : (fp8_EK_.values_NK.to(at::kFloat) * fp8_EK_.scale_N1).to(dtype_);
}

Tensor Matrix::product(const MatrixInput& x, const Tensor& bias_E) const {
  if (packed_KE_.defined()) {
    const std::vector<int64_t> sizes = with_width(x.sizes, packed_KE_.columns());
    const Tensor out = at::empty(sizes, x.values.options());
    if (bias_E.defined()) out.copy_(bias_E.expand(sizes));
    packed_KE_.multiply(x.values.reshape({-1, packed_KE_.rows()}), out.view({-1, packed_KE_.columns()}), bias_E.defined());
    return out;
  }
  if (weight_EK_.defined()) return ops::linear_without_grad(x.values, weight_EK_, bias_E);
  const Tensor out_NE = ops::fp8_linear(x.fp8, fp8_EK_, bias_E, dtype_);
  return out_NE.view(with_width(x.sizes, out_NE.size(1)));
}

MatrixInput Matrix::swiglu_product_input(const MatrixInput& x, const Tensor& bias_E, ProductType type) const {
  if (weight_EK_.defined() && !bias_E.defined()) return matrix_input(ops::swiglu_product(x.values, weight_EK_), type);
  return swiglu_input(product(x, bias_E), type);
}

void Matrix::add_product_(Tensor& sum, const MatrixInput& x, const Tensor& bias_E) const {
  if (!packed_KE_.defined() && !weight_EK_.defined()) {
    sum.add_(product(x, bias_E));
    return;
  }
  if (!packed_KE_.defined()) return ops::add_linear_(sum, x.values, weight_EK_, bias_E);
  if (bias_E.defined()) sum.add_(bias_E);
  packed_KE_.multiply(x.values.reshape({-1, x.values.size(-1)}), sum.view({-1, sum.size(-1)}), /*accumulate=*/true);
}

}  // namespace distil_xlstm::nn
