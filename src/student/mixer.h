// A token mixer with what belongs to it in a block: from the residual stream before to the one after. Kinds are chosen by name, block by
// block. Letters: B batch, S sequence, N = B S tokens, D width of the stream.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "ops/mlstm.h"
#include "student/parameter.h"
#include "student/shape.h"

namespace distil_xlstm::student {

// What a mixer carries from token to token: tensors whose first dimension is the row of the batch. Only the mixer knows more of them.
class MixerState {
 public:
  virtual ~MixerState() = default;
  // Calls visit for each defined tensor, always in one order.
  virtual void for_each(const std::function<void(Tensor&)>& visit) = 0;
  // What happens to one changes nothing of the other. Handles to the same tensors do, where none is written into.
  [[nodiscard]] virtual std::unique_ptr<MixerState> clone() const = 0;
  // For states that grow with their tokens. Room for so many in all, made at once.
  virtual void reserve(int64_t /*max_tokens*/) {}
  // Rows of `other`, of the same mixer after as many tokens, are to come behind these: gives both tensors that differ in their rows alone.
  virtual void match(MixerState& /*other*/) {}
};

// Of a mixer's tensors, in the order of its parameters().
using MixerWeights = std::vector<Tensor>;

struct MixerCall {
  Tensor is_start_BS;                         // uint8, 1 where a document begins, or undefined
  at::ScalarType compute_dtype = at::kFloat;  // of the matrix products
  ops::MlstmForm form = ops::MlstmForm::chunkwise;
  const MixerWeights* products = nullptr;  // the weights as products take them, kept from step to step; null: converted where they are used
};

// What the matrix of a layer's attention is made of: queries and keys with positions; and which queries count (uint8).
struct AttentionMatrix {
  Tensor q_BSHK, k_BSGK, mask_BS;
};

// The state as the mixer made it. Throws ValueError where another did.
template <typename State>
State* own_state(MixerState* state) {
  if (state == nullptr) return nullptr;
  auto* own = dynamic_cast<State*>(state);
  if (own == nullptr) throw ValueError("student: the decoding state was made by another model");
  return own;
}

// Has no tensors of its own: one may serve several students and threads.
class Mixer {
 public:
  virtual ~Mixer() = default;

  [[nodiscard]] virtual std::string_view kind() const = 0;
  [[nodiscard]] virtual const std::vector<ParameterSpec>& parameters() const = 0;
  // x_BSD, the residual stream in float32 (float64 where the parameters are) -> the same after the block. Differentiable in x and the
  // weights. `state`, unless null, is where the rows start from, and holds where they ended afterwards. One token a row and no gradient is
  // the recurrent step.
  [[nodiscard]] virtual Tensor forward(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call,
                                       MixerState* state) const = 0;
  // What the mixer proper adds to the stream, for blocks that are a decoder layer with another mixer in attention's place. Differentiable
  // as forward is. Throws ValueError for others.
  [[nodiscard]] virtual Tensor mixer_output(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call) const;
  // Whether mixing_error_sum is defined: whether values are mixed by a matrix that is known without them.
  [[nodiscard]] virtual bool has_mixing_matrix() const { return false; }
  // ops::mixing_error_sum of that matrix and of attention with these queries and keys. Throws ValueError for others.
  [[nodiscard]] virtual Tensor mixing_error_sum(const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call,
                                                const AttentionMatrix& attention) const;
  // Where rows begin; float32 (`options`) except what enters the convolution, which has the type of its input.
  [[nodiscard]] virtual std::unique_ptr<MixerState> zero_state(int64_t batch, at::ScalarType compute_dtype,
                                                               at::TensorOptions options) const = 0;
  [[nodiscard]] virtual KeptValues kept_values() const = 0;

  // Of one row's state behind so many tokens, with products of this type.
  [[nodiscard]] int64_t state_bytes(int64_t num_tokens, at::ScalarType compute_dtype) const;
};

// Mixer::forward that keeps only its input for backward and computes the rest again there.
Tensor forward_checkpointed(const Mixer& mixer, const MixerWeights& weights, const Tensor& x_BSD, const MixerCall& call, MixerState* state);

// Names the tensors of MixerWeights for a mixer's own use. `Weights` has for_each(visit), which calls visit(name, tensor) for each member;
// those that parameters() lacks stay undefined.
template <typename Weights>
class WeightBinder {
 public:
  explicit WeightBinder(const std::vector<ParameterSpec>& parameters) {
    Weights names;
    names.for_each([&](std::string_view name, const Tensor&) {
      size_t place = 0;
      while (place < parameters.size() && parameters[place].name != name) ++place;
      places_.push_back(place);
    });
  }

  // Undefined members throughout for a null pointer.
  [[nodiscard]] Weights operator()(const MixerWeights* values) const {
    Weights weights;
    if (values == nullptr) return weights;
    size_t next = 0;
    weights.for_each([&](std::string_view, Tensor& tensor) {
      if (const size_t place = places_[next++]; place < values->size()) tensor = (*values)[place];
    });
    return weights;
  }

 private:
  std::vector<size_t> places_;  // in parameters(), or behind them
};

}  // namespace distil_xlstm::student
