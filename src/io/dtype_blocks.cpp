#include "io/dtype_blocks.h"

#include <array>
#include <cstring>

#include "base/error.h"
#include "base/half.h"

namespace distil_xlstm::io {
namespace {

using Bytes = const std::byte*;

inline uint32_t byte_at(Bytes bytes, size_t i) {
  return std::to_integer<uint32_t>(bytes[i]);
}
inline int signed_byte_at(Bytes bytes, size_t i) {
  return static_cast<int8_t>(std::to_integer<uint8_t>(bytes[i]));
}
inline uint32_t low(uint32_t byte) {
  return byte & 0x0fU;
}
inline uint32_t high(uint32_t byte) {
  return byte >> 4;
}

void dequantize_q8_0(Bytes block, float* out) {
  const float d = half_value(block);
  for (size_t i = 0; i < 32; ++i) out[i] = static_cast<float>(signed_byte_at(block + 2, i)) * d;
}

void dequantize_q4_0(Bytes block, float* out) {
  const float d = half_value(block);
  for (size_t i = 0; i < 16; ++i) {
    const uint32_t q = byte_at(block + 2, i);
    out[i] = d * static_cast<float>(static_cast<int>(low(q)) - 8);
    out[i + 16] = d * static_cast<float>(static_cast<int>(high(q)) - 8);
  }
}

void dequantize_q4_1(Bytes block, float* out) {
  const float d = half_value(block);
  const float m = half_value(block + 2);
  for (size_t i = 0; i < 16; ++i) {
    const uint32_t q = byte_at(block + 4, i);
    out[i] = d * static_cast<float>(low(q)) + m;
    out[i + 16] = d * static_cast<float>(high(q)) + m;
  }
}

// The five-bit numbers of a Q5_0 or Q5_1 block.
std::array<int, 32> five_bits(Bytes fifth, Bytes nibbles) {
  const uint32_t h = byte_at(fifth, 0) | byte_at(fifth, 1) << 8 | byte_at(fifth, 2) << 16 | byte_at(fifth, 3) << 24;
  std::array<int, 32> q;
  for (size_t i = 0; i < 16; ++i) {
    q[i] = static_cast<int>(low(byte_at(nibbles, i)) | (h >> i & 1U) << 4);
    q[i + 16] = static_cast<int>(high(byte_at(nibbles, i)) | (h >> (i + 16) & 1U) << 4);
  }
  return q;
}

void dequantize_q5_0(Bytes block, float* out) {
  const float d = half_value(block);
  const std::array<int, 32> q = five_bits(block + 2, block + 6);
  for (size_t i = 0; i < 32; ++i) out[i] = d * static_cast<float>(q[i] - 16);
}

void dequantize_q5_1(Bytes block, float* out) {
  const float d = half_value(block);
  const float m = half_value(block + 2);
  const std::array<int, 32> q = five_bits(block + 4, block + 8);
  for (size_t i = 0; i < 32; ++i) out[i] = d * static_cast<float>(q[i]) + m;
}

// Scale and minimum of sub-block j: six bits each. Those of 0..3 lie whole in bytes 0..3 and 4..7; those of 4..7 have their low four
// bits in bytes 8..11 and their high two on top of the former.
struct ScaleMin {
  float scale, min;
};
inline ScaleMin scale_min(Bytes packed, size_t j) {
  if (j < 4) return {static_cast<float>(byte_at(packed, j) & 0x3fU), static_cast<float>(byte_at(packed, j + 4) & 0x3fU)};
  const uint32_t rest = byte_at(packed, j + 4);
  return {static_cast<float>(low(rest) | (byte_at(packed, j - 4) >> 6) << 4),
          static_cast<float>(high(rest) | (byte_at(packed, j) >> 6) << 4)};
}

template <bool has_fifth_bit>
void dequantize_q45_k(Bytes block, float* out) {
  const float d = half_value(block);
  const float dmin = half_value(block + 2);
  const Bytes fifth = block + 16;
  const Bytes nibbles = block + (has_fifth_bit ? 48 : 16);
  for (size_t j = 0; j < 8; ++j) {
    const ScaleMin packed = scale_min(block + 4, j);
    const float scale = d * packed.scale;
    const float min = dmin * packed.min;
    const Bytes group = nibbles + j / 2 * 32;
    const uint32_t shift = j % 2 * 4;
    for (size_t i = 0; i < 32; ++i) {
      uint32_t q = low(byte_at(group, i) >> shift);
      if constexpr (has_fifth_bit) q |= (byte_at(fifth, i) >> j & 1U) << 4;
      out[j * 32 + i] = scale * static_cast<float>(q) - min;
    }
  }
}

void dequantize_q6_k(Bytes block, float* out) {
  const Bytes scales = block + 192;
  const float d = half_value(block + 208);
  for (size_t part = 0; part < 8; ++part) {  // 32 elements each: half of the block, then which quarter of that half
    const size_t half = part / 4;
    const size_t quarter = part % 4;
    const Bytes nibbles = block + half * 64 + quarter % 2 * 32;
    const Bytes upper = block + 128 + half * 32;
    for (size_t i = 0; i < 32; ++i) {
      const uint32_t four = low(byte_at(nibbles, i) >> (quarter / 2 * 4));
      const uint32_t two = byte_at(upper, i) >> (quarter * 2) & 3U;
      const float scale = d * static_cast<float>(signed_byte_at(scales, part * 2 + i / 16));
      out[part * 32 + i] = scale * static_cast<float>(static_cast<int>(four | two << 4) - 32);
    }
  }
}

template <void (*dequantize)(Bytes, float*)>
void for_each_block(DType dtype, std::span<const std::byte> bytes, float* out) {
  const DTypeTraits type = traits(dtype);
  for (size_t at = 0; at < bytes.size(); at += type.block_bytes, out += type.block_elements) dequantize(bytes.data() + at, out);
}

}  // namespace

float half_value(const std::byte* bytes) {
  uint16_t bits = 0;
  std::memcpy(&bits, bytes, sizeof bits);
  return half_to_float(bits);
}

void dequantize_blocks(DType dtype, std::span<const std::byte> bytes, float* out) {
  switch (dtype) {
    case DType::q8_0:
      return for_each_block<dequantize_q8_0>(dtype, bytes, out);
    case DType::q4_0:
      return for_each_block<dequantize_q4_0>(dtype, bytes, out);
    case DType::q4_1:
      return for_each_block<dequantize_q4_1>(dtype, bytes, out);
    case DType::q5_0:
      return for_each_block<dequantize_q5_0>(dtype, bytes, out);
    case DType::q5_1:
      return for_each_block<dequantize_q5_1>(dtype, bytes, out);
    case DType::q4_k:
      return for_each_block<dequantize_q45_k<false>>(dtype, bytes, out);
    case DType::q5_k:
      return for_each_block<dequantize_q45_k<true>>(dtype, bytes, out);
    case DType::q6_k:
      return for_each_block<dequantize_q6_k>(dtype, bytes, out);
    default:
      throw ValueError("dequantize_blocks: {} is not quantised", traits(dtype).name);
  }
}

}  // namespace distil_xlstm::io
