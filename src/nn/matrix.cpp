#include "nn/matrix.h"

#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"
#include "ops/gated.h"
#include "ops/linear.h"
#include "ops/norm.h"

namespace distil_xlstm::nn {
namespace {

std::vector<int64_t> with_width(std::vector<int64_t> sizes, int64_t width) {
  sizes.back() = width;
  return sizes;
}

Tensor as_type(const Tensor& tensor, at::ScalarType dtype) {
  return tensor.defined() ? tensor.to(dtype) : tensor;
}

void refuse_gradient(std::initializer_list<Tensor> tensors) {
  if (ops::any_requires_grad(tensors))
    throw ValueError("matrix: products in fp8 have no gradient: leave the model's weights in their type");
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Packed : torch::CustomClassHolder {
  explicit Packed(ops::PackedMatrix matrix) : matrix_KE(std::move(matrix)) {}
  ops::PackedMatrix matrix_KE;
};

Tensor multiply(const ops::PackedMatrix& matrix_KE, const Tensor& x, const Tensor& bias_E) {
  const std::vector<int64_t> sizes = with_width(x.sizes().vec(), matrix_KE.columns());
  const Tensor out = at::empty(sizes, x.options());
  if (bias_E.defined()) out.copy_(bias_E.expand(sizes));
  matrix_KE.multiply(x.reshape({-1, matrix_KE.rows()}), out.view({-1, matrix_KE.columns()}), bias_E.defined());
  return out;
}

// The product of a packed matrix, which is no tensor to autograd: a gradient goes through it to x, and to the bias.
struct PackedFunction : torch::autograd::Function<PackedFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& bias_E,
                        const c10::intrusive_ptr<Packed>& packed) {
    ctx->saved_data["packed"] = at::IValue::make_capsule(packed);
    ctx->saved_data["has_bias"] = bias_E.has_value();
    return multiply(packed->matrix_KE, x, bias_E.value_or(Tensor()));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto packed = c10::static_intrusive_pointer_cast<Packed>(ctx->saved_data["packed"].toCapsule());
    const Tensor& grad = grads[0];
    const Tensor grad_bias = ctx->saved_data["has_bias"].toBool() ? grad.reshape({-1, grad.size(-1)}).sum(0) : Tensor();
    return {at::matmul(grad, packed->matrix_KE.unpacked().t()), grad_bias, {}};
  }
};

}  // namespace

MatrixInput MatrixInput::in_type(at::ScalarType dtype) && {
  values = as_type(values, dtype);
  return std::move(*this);
}

MatrixInput matrix_input(const Tensor& x, ProductType type) {
  if (type == ProductType::fp8) refuse_gradient({x});
  if (type == ProductType::fp8) return {x.sizes().vec(), {}, ops::fp8_rows(x)};
  return {x.sizes().vec(), x, {}};
}

MatrixInput rms_norm_input(const Tensor& x, const Tensor& weight, double eps, ProductType type) {
  if (type == ProductType::fp8) refuse_gradient({x, weight});
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
  if (type == ProductType::fp8) refuse_gradient({gate_up});
  if (type == ProductType::fp8) return {with_width(gate_up.sizes().vec(), gate_up.size(-1) / 2), {}, ops::fp8_swiglu(gate_up)};
  return matrix_input(ops::swiglu(gate_up), type);
}

void Matrix::pack() {
  if (!ops::PackedMatrix::supports(weight_EK_) || weight_EK_.requires_grad()) return;
  packed_KE_ = ops::PackedMatrix(weight_EK_.t());
  weight_EK_ = converted_EK_ = Tensor();
}

void Matrix::use_fp8() {
  if (packed_KE_.defined()) {
    weight_EK_ = packed_KE_.unpacked().t();
    packed_KE_ = {};
  }
  if (!weight_EK_.defined()) return;
  dtype_ = weight_EK_.scalar_type();
  fp8_EK_ = ops::fp8_rows(weight_EK_);
  weight_EK_ = converted_EK_ = Tensor();
}

Tensor Matrix::values() const {
  if (packed_KE_.defined()) return packed_KE_.unpacked().t();
  return weight_EK_.defined() ? weight_EK_ : (fp8_EK_.values_NK.to(at::kFloat) * fp8_EK_.scale_N1).to(dtype_);
}

Tensor Matrix::weight_as(at::ScalarType dtype) const {
  return converted_EK_.defined() && converted_EK_.scalar_type() == dtype ? converted_EK_ : weight_EK_.to(dtype);
}

Tensor Matrix::recorded_product(const MatrixInput& x, const Tensor& bias_E) const {
  if (packed_KE_.defined()) {
    const std::optional<Tensor> bias = bias_E.defined() ? std::optional(bias_E) : std::nullopt;
    return PackedFunction::apply(x.values, bias, c10::make_intrusive<Packed>(packed_KE_));
  }
  if (!weight_EK_.defined()) refuse_gradient({x.values, bias_E});
  return ops::linear_with_grad(x.values, {weight_EK_, converted_EK_}, bias_E);
}

Tensor Matrix::product(const MatrixInput& x, const Tensor& bias_E) const {
  if (ops::any_requires_grad({x.values, weight_EK_, bias_E})) return recorded_product(x, bias_E);
  if (packed_KE_.defined()) return multiply(packed_KE_, x.values, bias_E);
  if (weight_EK_.defined()) {
    const at::ScalarType dtype = x.values.scalar_type();
    return ops::linear_without_grad(x.values, weight_as(dtype), as_type(bias_E, dtype));
  }
  const Tensor out_NE = ops::fp8_linear(x.fp8, fp8_EK_, bias_E, dtype_);
  return out_NE.view(with_width(x.sizes, out_NE.size(1)));
}

MatrixInput Matrix::swiglu_product_input(const MatrixInput& x, const Tensor& bias_E, ProductType type) const {
  if (weight_EK_.defined() && !bias_E.defined() && !ops::any_requires_grad({x.values, weight_EK_}))
    return matrix_input(ops::swiglu_product(x.values, weight_as(x.values.scalar_type())), type);
  return swiglu_input(product(x, bias_E), type);
}

void Matrix::add_product_(Tensor& sum, const MatrixInput& x, const Tensor& bias_E) const {
  if (is_fp8() || sum.scalar_type() != x.values.scalar_type()) {
    sum.add_(product(x, bias_E));
    return;
  }
  if (!packed_KE_.defined()) return ops::add_linear_(sum, x.values, weight_as(sum.scalar_type()), as_type(bias_E, sum.scalar_type()));
  if (bias_E.defined()) sum.add_(bias_E);
  packed_KE_.multiply(x.values.reshape({-1, x.values.size(-1)}), sum.view({-1, sum.size(-1)}), /*accumulate=*/true);
}

}  // namespace distil_xlstm::nn
