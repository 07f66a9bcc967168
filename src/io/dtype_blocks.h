// GGUF's quantised blocks. Layouts, bytes from the start of a block (d, m, dmin are float16; x is the value of element i):
//   Q8_0  d 2, q 32 x int8                       x = d q
//   Q4_0  d 2, q 16                              x = d (q - 8)       q: low nibbles are elements 0..15, high ones 16..31
//   Q4_1  d 2, m 2, q 16                         x = d q + m
//   Q5_0  d 2, h 4, q 16                         x = d (q - 16)      bit i of h is the fifth bit of element i
//   Q5_1  d 2, m 2, h 4, q 16                    x = d q + m
//   Q4_K  d 2, dmin 2, s 12, q 128               x = (d s_j) q - dmin m_j, j = i / 32; s holds eight 6-bit s_j and m_j
//   Q5_K  d 2, dmin 2, s 12, h 32, q 128         as Q4_K; bit j of h[i % 32] is the fifth bit
//   Q6_K  q 128, h 64, s 16 x int8, d 2          x = (d s_j) (q - 32), j = i / 16
// K types: q comes in groups of 32 bytes; low nibbles are 32 elements, high nibbles the next 32 (Q6_K: groups of 64 bytes).
#pragma once

#include <span>

#include "io/dtype.h"

namespace distil_xlstm::io {

// float16 bits, exactly.
float half_value(const std::byte* bytes);

// bytes.size() is a multiple of the type's block_bytes. `dtype` must be quantised.
void dequantize_blocks(DType dtype, std::span<const std::byte> bytes, float* out);

}  // namespace distil_xlstm::io
