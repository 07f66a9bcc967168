// Element types of stored tensors: safetensors' and GGUF's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace distil_xlstm::io {

enum class DType { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, q6_k };

struct DTypeTraits {
  std::string_view name;  // as safetensors or GGUF write it: "F32", "BF16", "Q4_K"
  size_t block_elements;  // 1, or the elements of one quantised block
  size_t block_bytes;
};
DTypeTraits traits(DType dtype);
bool is_quantized(DType dtype);

// Bytes of `elements` values; throws DataError when a quantised row does not end at a block's border, or the size overflows.
size_t storage_bytes(DType dtype, size_t elements);

// "F32" -> DType::f32, of the types that safetensors has; throws DataError that names `where` for one that is unknown.
DType dtype_from_name(std::string_view name, std::string_view where);

// Product of the dimensions; throws DataError that names `where` for a negative dimension or an overflow.
size_t checked_elements(std::span<const int64_t> shape, std::string_view where);

// Stored elements, of any type, as float: `bytes` holds whole blocks, `out` has room for all of their elements.
// Quantised types give the very values of the `gguf` package's dequantize.
void to_float(DType dtype, std::span<const std::byte> bytes, float* out);

}  // namespace distil_xlstm::io
