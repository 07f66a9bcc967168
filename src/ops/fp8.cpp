#include "ops/fp8.h"

#include <limits>

#include "ops/cuda_backend.h"
#include "ops/device.h"
#include "ops/gated.h"
#include "ops/internal.h"
#include "ops/norm.h"

namespace distil_xlstm::ops {
namespace {

constexpr double kMaxE4m3 = 448.0;

// K values a row of the result, from x of one type that lies in one piece.
bool has_kernel(const Tensor& x, int64_t K) {
  if (!has_cuda_kernels(x) || x.numel() == 0) return false;
  const int64_t vector = 16 / static_cast<int64_t>(x.element_size());
  return K % vector == 0 && K / vector <= cuda_backend().max_fp8_vectors;
}

Tensor wide(const Fp8Rows& rows) {
  return rows.values_NK.to(at::kFloat) * rows.scale_N1;
}

}  // namespace

Fp8Rows fp8_rows(const Tensor& x) {
  const int64_t K = x.size(-1);
  if (has_kernel(x, K)) return cuda_backend().fp8_rows(Fp8Source::values, x.contiguous(), {}, 0.0);
  const Tensor x_NK = x.reshape({-1, K}).to(at::kFloat);
  const Tensor largest_N1 = x_NK.abs().amax(1, true);
  const Tensor scale_N1 = (largest_N1 / kMaxE4m3).clamp_min(std::numeric_limits<float>::min());
  return {(x_NK * scale_N1.reciprocal()).clamp(-kMaxE4m3, kMaxE4m3).to(at::kFloat8_e4m3fn), scale_N1};
}

Fp8Rows fp8_rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  if (has_kernel(x, x.size(-1)) && weight.scalar_type() == x.scalar_type())
    return cuda_backend().fp8_rows(Fp8Source::rms_norm, x.contiguous(), weight.contiguous(), eps);
  return fp8_rows(rms_norm(x, weight, eps));
}

Fp8Rows fp8_swiglu(const Tensor& gate_up) {
  if (gate_up.size(-1) % 2 == 0 && has_kernel(gate_up, gate_up.size(-1) / 2))
    return cuda_backend().fp8_rows(Fp8Source::swiglu, gate_up.contiguous(), {}, 0.0);
  return fp8_rows(swiglu(gate_up));
}

bool has_fp8_products(at::Device device) {
  constexpr int kFirstCapability = 89;
  return device.is_cuda() && compute_capability(device) >= kFirstCapability;
}

Tensor fp8_linear(const Fp8Rows& x_NK, const Fp8Rows& weight_EK, const Tensor& bias_E, at::ScalarType dtype) {
  check_rank("fp8_linear: x_NK", x_NK.values_NK, 2);
  const int64_t K = x_NK.values_NK.size(1), E = weight_EK.values_NK.size(0);
  check_shape("fp8_linear: weight_EK", weight_EK.values_NK, {E, K});
  if (bias_E.defined()) check_shape("fp8_linear: bias_E", bias_E, {E});
  constexpr int64_t kWidth = 16;  // that the tensor cores' kernels ask for
  if (has_fp8_products(x_NK.values_NK.device()) && K % kWidth == 0 && E % kWidth == 0 && dtype == at::kBFloat16 &&
      x_NK.values_NK.size(0) > 0) {
    const Tensor product = at::_scaled_mm(x_NK.values_NK, weight_EK.values_NK.t(), x_NK.scale_N1, weight_EK.scale_N1.t(), std::nullopt,
                                          std::nullopt, dtype, /*use_fast_accum=*/true);
    return bias_E.defined() ? product + bias_E : product;
  }
  const Tensor product = at::mm(wide(x_NK), wide(weight_EK).t());
  return (bias_E.defined() ? product + bias_E : product).to(dtype);
}

}  // namespace distil_xlstm::ops
