// A sequence cut into chunks, as the chunkwise forms of the mixers take it. Letters: B batch, S sequence, H heads, N chunks, L tokens of a
// chunk.
#pragma once

#include "ops/tensor.h"

namespace distil_xlstm::ops {

// [B, S, H, ...] -> [B, H, N, L, ...], the tail filled up. May be a view of x.
inline Tensor chunked(const Tensor& x, int64_t L, double fill) {
  const int64_t S = x.size(1), missing = (L - S % L) % L;
  Tensor y = x;
  if (missing > 0) {
    auto sizes = x.sizes().vec();
    sizes[1] = missing;
    y = at::cat({x, at::full(sizes, fill, x.options())}, 1);
  }
  return y.unflatten(1, {-1, L}).movedim(3, 1).contiguous();
}

// The inverse of chunked().
inline Tensor unchunked(const Tensor& x, int64_t S) {
  return x.movedim(1, 3).flatten(1, 2).narrow(1, 0, S).contiguous();
}

// Sums over u in (j, t] of a chunk's values, each from its own start: no differences of long sums. 0 above the diagonal.
inline Tensor sums_between(const Tensor& x_BHNL) {
  const int64_t L = x_BHNL.size(-1);
  return x_BHNL.unsqueeze(-1).expand({-1, -1, -1, L, L}).tril(-1).cumsum(-2);
}

}  // namespace distil_xlstm::ops
