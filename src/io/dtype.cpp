#include "io/dtype.h"

#include <array>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/half.h"
#include "io/dtype_blocks.h"

namespace distil_xlstm::io {
namespace {

constexpr size_t kNumPlainTypes = 10;

// In the order of DType.
constexpr std::array<DTypeTraits, 18> kTraits = {{{"F64", 1, 8},
                                                  {"F32", 1, 4},
                                                  {"F16", 1, 2},
                                                  {"BF16", 1, 2},
                                                  {"I64", 1, 8},
                                                  {"I32", 1, 4},
                                                  {"I16", 1, 2},
                                                  {"I8", 1, 1},
                                                  {"U8", 1, 1},
                                                  {"BOOL", 1, 1},
                                                  {"Q8_0", 32, 34},
                                                  {"Q4_0", 32, 18},
                                                  {"Q4_1", 32, 20},
                                                  {"Q5_0", 32, 22},
                                                  {"Q5_1", 32, 24},
                                                  {"Q4_K", 256, 144},
                                                  {"Q5_K", 256, 176},
                                                  {"Q6_K", 256, 210}}};

// Stored values need not be aligned: they pass through a small array. Its constant length lets the compiler vectorise the loop.
template <typename Stored, typename Convert>
void convert_all(std::span<const std::byte> bytes, float* __restrict out, Convert convert) {
  constexpr size_t kChunk = 256;
  std::array<Stored, kChunk> chunk;
  const size_t count = bytes.size() / sizeof(Stored);
  size_t done = 0;
  for (; done + kChunk <= count; done += kChunk) {
    std::memcpy(chunk.data(), bytes.data() + done * sizeof(Stored), sizeof chunk);
    for (size_t i = 0; i < kChunk; ++i) out[done + i] = convert(chunk[i]);
  }
  if (done == count) return;  // an empty span may point nowhere, which memcpy must not see
  std::memcpy(chunk.data(), bytes.data() + done * sizeof(Stored), (count - done) * sizeof(Stored));
  for (size_t i = 0; done + i < count; ++i) out[done + i] = convert(chunk[i]);
}

template <typename Stored>
void cast_all(std::span<const std::byte> bytes, float* out) {
  convert_all<Stored>(bytes, out, [](Stored value) { return static_cast<float>(value); });
}

}  // namespace

DTypeTraits traits(DType dtype) {
  return kTraits.at(static_cast<size_t>(dtype));
}

bool is_quantized(DType dtype) {
  return traits(dtype).block_elements > 1;
}

size_t storage_bytes(DType dtype, size_t elements) {
  const DTypeTraits type = traits(dtype);
  if (elements % type.block_elements != 0) {
    throw DataError("{} elements of type {}: the number must be a multiple of its block of {}", elements, type.name, type.block_elements);
  }
  const size_t blocks = elements / type.block_elements;
  if (blocks > std::numeric_limits<size_t>::max() / type.block_bytes) {
    throw DataError("{} elements of type {}: the size in bytes overflows", elements, type.name);
  }
  return blocks * type.block_bytes;
}

DType dtype_from_name(std::string_view name, std::string_view where) {
  std::string allowed;
  for (size_t i = 0; i < kNumPlainTypes; ++i) {
    if (kTraits[i].name == name) return static_cast<DType>(i);
    allowed += allowed.empty() ? "" : ", ";
    allowed += kTraits[i].name;
  }
  throw DataError("{}: dtype '{}' is not supported: {} are", where, name, allowed);
}

size_t checked_elements(std::span<const int64_t> shape, std::string_view where) {
  // Below 2^60 elements every size in bytes fits too.
  constexpr size_t kMost = size_t{1} << 60;
  size_t elements = 1;
  for (const int64_t dimension : shape) {
    if (dimension < 0) throw DataError("{}: a dimension is {}", where, dimension);
    if (dimension != 0 && elements > kMost / static_cast<size_t>(dimension))
      throw DataError("{}: the product of its dimensions overflows", where);
    elements *= static_cast<size_t>(dimension);
  }
  return elements;
}

void to_float(DType dtype, std::span<const std::byte> bytes, float* out) {
  switch (dtype) {
    case DType::f64:
      return cast_all<double>(bytes, out);
    case DType::f32:
      if (!bytes.empty()) std::memcpy(out, bytes.data(), bytes.size());
      return;
    case DType::f16:
      return convert_all<uint16_t>(bytes, out, half_to_float);
    case DType::bf16:
      return convert_all<uint16_t>(bytes, out, bfloat16_to_float);
    case DType::i64:
      return cast_all<int64_t>(bytes, out);
    case DType::i32:
      return cast_all<int32_t>(bytes, out);
    case DType::i16:
      return cast_all<int16_t>(bytes, out);
    case DType::i8:
      return cast_all<int8_t>(bytes, out);
    case DType::u8:
      return cast_all<uint8_t>(bytes, out);
    case DType::boolean:
      return convert_all<uint8_t>(bytes, out, [](uint8_t value) { return value == 0 ? 0.0F : 1.0F; });
    default:
      return dequantize_blocks(dtype, bytes, out);
  }
}

}  // namespace distil_xlstm::io
