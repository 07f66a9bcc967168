// Activation checkpointing of one block: forward runs without a graph, backward builds it from the saved input and walks it.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <memory>
#include <optional>

#include "student/mixer.h"

namespace distil_xlstm::student {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What the recomputation needs besides tensors that autograd tracks.
struct Segment : torch::CustomClassHolder {
  const Mixer* mixer = nullptr;  // outlives the step, as its student does
  MixerWeights weights;
  std::optional<MixerWeights> products;  // what call.products points to
  MixerCall call;
  std::unique_ptr<MixerState> initial;  // null: the rows begin at zero
  std::vector<bool> takes_gradient;     // of each parameter, then of x
};

struct CheckpointFunction : torch::autograd::Function<CheckpointFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_BSD, at::TensorList parameters, const c10::intrusive_ptr<Segment>& segment,
                        MixerState* state) {
    ctx->saved_data["segment"] = at::IValue::make_capsule(segment);
    variable_list saved = parameters.vec();
    saved.push_back(x_BSD);
    for (const Tensor& leaf : saved) segment->takes_gradient.push_back(leaf.requires_grad());
    ctx->save_for_backward(saved);
    return segment->mixer->forward(segment->weights, x_BSD, segment->call, state);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto segment = c10::static_intrusive_pointer_cast<Segment>(ctx->saved_data["segment"].toCapsule());
    variable_list leaves, differentiated;  // parameters, then x; those of them that a gradient is wanted of
    for (const Tensor& saved : ctx->get_saved_variables()) {
      const bool takes_gradient = segment->takes_gradient[leaves.size()];
      leaves.push_back(saved.detach().requires_grad_(takes_gradient));
      if (takes_gradient) differentiated.push_back(leaves.back());
    }
    const MixerWeights weights(leaves.begin(), leaves.end() - 1);
    const auto initial = segment->initial ? segment->initial->clone() : nullptr;
    variable_list found;
    {
      at::AutoGradMode with_graph(true);
      const Tensor y_BSD = segment->mixer->forward(weights, leaves.back(), segment->call, initial.get());
      found = torch::autograd::grad({y_BSD}, differentiated, {grads[0]}, std::nullopt, false, /*allow_unused=*/true);
    }
    variable_list gradients;
    auto next = found.begin();
    for (const bool takes_gradient : segment->takes_gradient) gradients.push_back(takes_gradient ? *next++ : Tensor());
    variable_list out = {gradients.back()};  // x is the first argument
    out.insert(out.end(), gradients.begin(), gradients.end() - 1);
    out.resize(out.size() + 2);  // segment, state
    return out;
  }
};

}  // namespace

Tensor forward_checkpointed(const Mixer& mixer, const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call,
                            MixerState* state) {
  auto segment = c10::make_intrusive<Segment>();
  segment->mixer = &mixer;
  for (const Tensor& weight : weights) segment->weights.push_back(weight.detach());
  segment->call = call;
  if (call.products != nullptr) segment->call.products = &segment->products.emplace(*call.products);
  if (state) segment->initial = state->clone();
  return CheckpointFunction::apply(x_BSD, at::TensorList(weights), segment, state);
}

}  // namespace distil_xlstm::student
