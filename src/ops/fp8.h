// Matrix products in 8-bit floats (e4m3) with a factor for each row of both sides: half the bytes and twice the speed of half precision on
// tensor cores that have them (compute capability 8.9 and later), 2 to 3 % of noise on each value. For frozen models: no gradient.
// Letters: N rows, K summed width, E outputs.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// x ~ scale * values, row by row.
struct Fp8Rows {
  Tensor values_NK;  // float8_e4m3fn
  Tensor scale_N1;   // float32: largest magnitude of the row / 448, the largest e4m3 value, or the smallest normal float32
};

// The rows of x [..., K], any floating type.
Fp8Rows fp8_rows(const Tensor& x);
// Those of rms_norm(x, weight, eps) and of swiglu(gate_up), without writing them in between on CUDA.
Fp8Rows fp8_rms_norm(const Tensor& x, const Tensor& weight, double eps);
Fp8Rows fp8_swiglu(const Tensor& gate_up);

// Whether this device's tensor cores multiply such numbers.
bool has_fp8_products(at::Device device);

// x W^T + b, [N, E] in `dtype`; bias_E may be undefined. Where the device has no fp8 products, or K or E is no multiple of 16, or `dtype`
// is not bfloat16, float32 products of the same values: slower than without fp8, for its effect alone. Throws ShapeError.
Tensor fp8_linear(const Fp8Rows& x_NK, const Fp8Rows& weight_EK, const Tensor& bias_E, at::ScalarType dtype);

}  // namespace distil_xlstm::ops
