// Pieces of one buffer, each at a 256-byte border.
#pragma once

#include <cstddef>
#include <cstdint>

namespace distil_xlstm::kernels::cuda {

// Hands out pieces of a buffer; counts them when there is none.
struct Arena {
  unsigned char* base;
  size_t used = 0;
  template <typename X>
  void take(X*& pointer, int64_t count) {
    pointer = reinterpret_cast<X*>(base + used);
    used += (size_t(count) * sizeof(X) + 255) / 256 * 256;
  }
};

}  // namespace distil_xlstm::kernels::cuda
