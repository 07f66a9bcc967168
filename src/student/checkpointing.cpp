// Activation checkpointing of one block: forward runs without a graph, backward builds it from the saved input and walks it.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "student/blocks.h"

namespace distil_xlstm::student {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What the recomputation needs besides tensors that autograd tracks.
struct Segment : torch::CustomClassHolder {
  BlockWeights weights;
  std::optional<BlockWeights> products;  // what call.products points to
  BlockCall call;
  BlockState initial;
  bool has_state = false;
};

struct CheckpointFunction : torch::autograd::Function<CheckpointFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_BSD, at::TensorList parameters, const c10::intrusive_ptr<Segment>& segment,
                        BlockState* state) {
    ctx->saved_data["segment"] = at::IValue::make_capsule(segment);
    variable_list saved = parameters.vec();
    saved.push_back(x_BSD);
    ctx->save_for_backward(saved);
    return forward_block(segment->weights, x_BSD, segment->call, state);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto segment = c10::static_intrusive_pointer_cast<Segment>(ctx->saved_data["segment"].toCapsule());
    variable_list leaves;  // parameters, then x
    for (const Tensor& saved : ctx->get_saved_variables()) leaves.push_back(saved.detach().requires_grad_());
    size_t next = 0;
    const BlockWeights weights = segment->weights.transformed([&](const Tensor&) { return leaves[next++]; });
    BlockState initial = segment->initial;
    variable_list out;
    {
      at::AutoGradMode with_graph(true);
      const Tensor y_BSD = forward_block(weights, leaves.back(), segment->call, segment->has_state ? &initial : nullptr);
      out = torch::autograd::grad({y_BSD}, leaves, {grads[0]});
    }
    out.insert(out.begin(), out.back());  // x is the first argument
    out.back() = Tensor();                // segment
    out.emplace_back();                   // state
    return out;
  }
};

}  // namespace

Tensor forward_block_checkpointed(const BlockWeights& weights, const Tensor& x_BSD, const BlockCall& call, BlockState* state) {
  auto segment = c10::make_intrusive<Segment>();
  segment->weights = weights.transformed([](const Tensor& tensor) { return tensor.detach(); });
  segment->call = call;
  if (call.products != nullptr) segment->call.products = &segment->products.emplace(*call.products);
  segment->has_state = state != nullptr;
  if (state) segment->initial = *state;
  const std::vector<Tensor> parameters = weights.tensors();
  return CheckpointFunction::apply(x_BSD, at::TensorList(parameters), segment, state);
}

}  // namespace distil_xlstm::student
