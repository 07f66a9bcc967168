// A matrix of a model: as a tensor, which may be trained, or of a frozen model laid out for the CPU's products (ops/packed_matrix.h) or in
// fp8 (ops/fp8.h).
#pragma once

#include "ops/fp8.h"
#include "ops/packed_matrix.h"
#include "ops/tensor.h"

namespace distil_xlstm::nn {

enum class ProductType { same_as_weights, fp8 };

// What a matrix multiplies: rows [..., K], in one of the two types.
struct MatrixInput {
  std::vector<int64_t> sizes;  // [..., K]
  Tensor values;               // same_as_weights
  ops::Fp8Rows fp8;            // fp8: [product of ..., K]

  // With values of this type, where it has values.
  [[nodiscard]] MatrixInput in_type(at::ScalarType dtype) &&;
};
// These are differentiable in what they read; throw ValueError for a gradient through fp8.
MatrixInput matrix_input(const Tensor& x, ProductType type);
MatrixInput rms_norm_input(const Tensor& x, const Tensor& weight, double eps, ProductType type);  // of ops::rms_norm
// The same of x, which becomes a copy of itself: what it was stays as it is whatever is added to x from now on.
MatrixInput rms_norm_input_of_copy(Tensor& x, const Tensor& weight, double eps, ProductType type);
MatrixInput swiglu_input(const Tensor& gate_up, ProductType type);  // of ops::swiglu

class Matrix {
 public:
  Matrix() = default;
  Matrix(Tensor weight_EK) : weight_EK_(std::move(weight_EK)) {}  // NOLINT(google-explicit-constructor): loaders assign what they read

  // A weight of another type than its products, and the same in theirs, kept from step to step. Gradients go to the weight.
  Matrix(Tensor weight_EK, Tensor converted_EK) : weight_EK_(std::move(weight_EK)), converted_EK_(std::move(converted_EK)) {}

  // The weight as loaded; undefined once pack() or use_fp8() has put another form in its place.
  [[nodiscard]] const Tensor& weight() const { return weight_EK_; }
  [[nodiscard]] bool is_fp8() const { return fp8_EK_.values_NK.defined() && !weight_EK_.defined() && !packed_KE_.defined(); }
  // The values that it multiplies by [E, K], made anew where they are kept in another form.
  [[nodiscard]] Tensor values() const;
  // Lays it out for products on this CPU, where that is supported and the weight is not to be trained.
  void pack();
  // Rounds it to fp8.
  void use_fp8();

  // x W^T + b [..., E]; bias_E may be undefined. The input must be of this matrix's type, but for a plain weight, which is converted.
  // Differentiable in the input, the weight and the bias. A packed matrix is unpacked at each backward: one that gradients pass often is
  // better left as it is. Throws ValueError for a gradient through fp8.
  [[nodiscard]] Tensor product(const MatrixInput& x, const Tensor& bias_E) const;
  // sum += the same, in place and without a gradient; inside the product, but for fp8 and sums of another type.
  void add_product_(Tensor& sum, const MatrixInput& x, const Tensor& bias_E) const;
  // swiglu_input of the product, for a matrix that holds gate and up; `type` is the next matrix's.
  [[nodiscard]] MatrixInput swiglu_product_input(const MatrixInput& x, const Tensor& bias_E, ProductType type) const;

 private:
  [[nodiscard]] Tensor recorded_product(const MatrixInput& x, const Tensor& bias_E) const;
  [[nodiscard]] Tensor weight_as(at::ScalarType dtype) const;

  // One of weight, packed and fp8 is defined.
  Tensor weight_EK_, converted_EK_;
  ops::PackedMatrix packed_KE_;
  ops::Fp8Rows fp8_EK_;
  at::ScalarType dtype_ = at::kFloat;  // of the fp8 form's results
};

}  // namespace distil_xlstm::nn
