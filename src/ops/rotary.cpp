#include "ops/rotary.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "ops/cuda_backend.h"
#include "ops/internal.h"
#include "ops/profiled.h"

namespace distil_xlstm::ops {
namespace {

// One pass over memory; cos and sin begin at the first row's position.
void rotate_float_cpu(const Tensor& x_BSHK, const float* cos, const float* sin) {
  const Profiled profiled("distil_xlstm::rotate");
  const int64_t S = x_BSHK.size(1), H = x_BSHK.size(2), half = x_BSHK.size(3) / 2;
  const int64_t stride_b = x_BSHK.stride(0), stride_s = x_BSHK.stride(1), stride_h = x_BSHK.stride(2);
  float* x = x_BSHK.data_ptr<float>();
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, H * half));
  at::parallel_for(0, x_BSHK.size(0) * S, grain, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t s = row % S;
      const float* __restrict c = cos + s * half;
      const float* __restrict d = sin + s * half;
      for (int64_t h = 0; h < H; ++h) {
        float* __restrict first = x + (row / S) * stride_b + s * stride_s + h * stride_h;
        float* __restrict second = first + half;
        for (int64_t i = 0; i < half; ++i) {
          const float a = first[i], b = second[i];
          first[i] = a * c[i] - b * d[i];
          second[i] = b * c[i] + a * d[i];
        }
      }
    }
  });
}

void rotate_aten(const Tensor& x_BSHK, const Tensor& cos_SI, const Tensor& sin_SI) {
  const int64_t half = x_BSHK.size(3) / 2;
  const Tensor cos_S1I = cos_SI.unsqueeze(1), sin_S1I = sin_SI.unsqueeze(1);
  const Tensor first = x_BSHK.narrow(3, 0, half), second = x_BSHK.narrow(3, half, half);
  const Tensor turned = first * cos_S1I - second * sin_S1I;
  second.copy_(second * cos_S1I + first * sin_S1I);
  first.copy_(turned);
}

void check_table(const char* what, const Tensor& table_TI, int64_t num_positions, int64_t half) {
  check_rank(what, table_TI, 2);
  if (table_TI.size(0) < num_positions || table_TI.size(1) != half || table_TI.scalar_type() != at::kFloat || !table_TI.is_contiguous()) {
    throw ShapeError("{}: {} of {}: {} or more positions of {} channels in contiguous float32 are needed", what,
                     shape_text(table_TI.sizes()), at::toString(table_TI.scalar_type()), num_positions, half);
  }
}

}  // namespace

void rotate_(const Tensor& x_BSHK, const Tensor& cos_TI, const Tensor& sin_TI, int64_t first_position) {
  check_rank("rotate_: x_BSHK", x_BSHK, 4);
  const int64_t S = x_BSHK.size(1), K = x_BSHK.size(3);
  if (K < 2 || K % 2 != 0) throw ShapeError("rotate_: x_BSHK {}: heads must have an even number of channels", shape_text(x_BSHK.sizes()));
  if (first_position < 0) throw ShapeError("rotate_: first_position = {}: must not be negative", first_position);
  check_table("rotate_: cos_TI", cos_TI, first_position + S, K / 2);
  check_table("rotate_: sin_TI", sin_TI, first_position + S, K / 2);
  check_device("rotate_: x_BSHK", x_BSHK, {cos_TI, sin_TI});
  for (int64_t i = 0; i < 4; ++i) {
    if (x_BSHK.stride(i) == 0 && x_BSHK.size(i) > 1)
      throw ShapeError("rotate_: x_BSHK {}: dimension {} is expanded, so that its parts share memory", shape_text(x_BSHK.sizes()), i);
  }
  if (x_BSHK.numel() == 0) return;
  x_BSHK.unsafeGetTensorImpl()->bump_version();  // the kernels write past autograd
  if (x_BSHK.stride(3) == 1 && has_cuda_kernels(x_BSHK)) return cuda_backend().rotate(x_BSHK, cos_TI, sin_TI, first_position);
  const Tensor cos_SI = cos_TI.narrow(0, first_position, S), sin_SI = sin_TI.narrow(0, first_position, S);
  if (x_BSHK.stride(3) == 1 && x_BSHK.is_cpu() && x_BSHK.scalar_type() == at::kFloat) {
    return rotate_float_cpu(x_BSHK, cos_SI.const_data_ptr<float>(), sin_SI.const_data_ptr<float>());
  }
  rotate_aten(x_BSHK, cos_SI, sin_SI);
}

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A rotation's gradient is turned back by the same angles.
struct RotateFunction : torch::autograd::Function<RotateFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_BSHK, const Tensor& cos_TI, const Tensor& sin_TI, int64_t first_position) {
    ctx->save_for_backward({cos_TI, sin_TI});
    ctx->saved_data["first_position"] = first_position;
    const Tensor y_BSHK = x_BSHK.clone(at::MemoryFormat::Contiguous);
    rotate_(y_BSHK, cos_TI, sin_TI, first_position);
    return y_BSHK;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor grad_BSHK = grads[0].clone(at::MemoryFormat::Contiguous);
    rotate_(grad_BSHK, saved[0], saved[1].neg(), ctx->saved_data["first_position"].toInt());
    return {grad_BSHK, {}, {}, {}};
  }
};

}  // namespace

Tensor rotate(const Tensor& x_BSHK, const Tensor& cos_TI, const Tensor& sin_TI, int64_t first_position) {
  return RotateFunction::apply(x_BSHK, cos_TI, sin_TI, first_position);
}

}  // namespace distil_xlstm::ops
