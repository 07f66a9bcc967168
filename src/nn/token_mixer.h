// What lets the tokens of a decoder layer see each other: attention in a transformer, a recurrent cell in a student made of it.
#pragma once

#include "nn/matrix.h"

namespace distil_xlstm::nn {

// One layer's, for one call: its weights, its state and where documents begin are its own affair, so that the layer needs to know none of
// them. Made where it is used, on the stack.
class TokenMixer {
 public:
  virtual ~TokenMixer() = default;
  // The layer's normed input [B, S, D] -> what the output projection multiplies [B, S, E]. Differentiable in the input and in the mixer's
  // weights where gradients are recorded.
  [[nodiscard]] virtual Tensor mix(const MatrixInput& u_BSD) = 0;
};

}  // namespace distil_xlstm::nn
