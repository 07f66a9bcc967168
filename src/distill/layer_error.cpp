#include "distill/layer_error.h"

#include <torch/csrc/autograd/custom_function.h>

#include <array>

#include "base/error.h"

namespace distil_xlstm::distill {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// One difference is made and kept; the gradient is that times a factor a row.
struct RelativeErrorFunction : torch::autograd::Function<RelativeErrorFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& student_BSD, const Tensor& teacher_BSD, const Tensor& is_masked_BS) {
    const auto dtype = student_BSD.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const Tensor is_masked_BS1 = is_masked_BS.unsqueeze(2);
    const Tensor wanted_BSD = teacher_BSD.to(dtype).masked_fill(is_masked_BS1, 0.0);
    const Tensor difference_BSD = (student_BSD.to(dtype) - wanted_BSD).masked_fill_(is_masked_BS1, 0.0);
    constexpr std::array<int64_t, 2> kRow = {1, 2};  // the dimensions of one
    const Tensor size_B = wanted_BSD.square().sum(kRow);
    const Tensor factor_B = size_B.reciprocal().masked_fill_(size_B == 0, 0.0);
    ctx->save_for_backward({difference_BSD, factor_B});
    ctx->saved_data["dtype"] = static_cast<int64_t>(student_BSD.scalar_type());
    return (difference_BSD.square().sum(kRow) * factor_B).sum();
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor factor_B11 = (2.0 * saved[1] * grads[0]).view({-1, 1, 1});
    return {(saved[0] * factor_B11).to(static_cast<at::ScalarType>(ctx->saved_data["dtype"].toInt())), {}, {}};
  }
};

}  // namespace

Tensor relative_error_sum(const Tensor& student_BSD, const Tensor& teacher_BSD, const Tensor& mask_BS) {
  if (student_BSD.dim() != 3 || student_BSD.sizes() != teacher_BSD.sizes() || mask_BS.sizes() != student_BSD.sizes().slice(0, 2)) {
    throw ShapeError("layer error: student's states [{}], teacher's [{}], mask [{}]: they must be [B, S, D] twice and [B, S]",
                     fmt::join(student_BSD.sizes(), ", "), fmt::join(teacher_BSD.sizes(), ", "), fmt::join(mask_BS.sizes(), ", "));
  }
  return RelativeErrorFunction::apply(student_BSD, teacher_BSD.detach(), mask_BS == 0);
}

}  // namespace distil_xlstm::distill
