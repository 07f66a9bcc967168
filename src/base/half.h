// float16 and bfloat16 to and from float, round to nearest even.
#pragma once

#include <bit>
#include <cstdint>

namespace distil_xlstm {

// Exact for every half, and right where denormal floats are flushed to zero; without branches, so that loops over it vectorise.
inline float half_to_float(uint16_t half) {
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffU) << 13U;
  const uint32_t exponent = magnitude & 0x0f800000U;
  const uint32_t normal = magnitude + (exponent == 0x0f800000U ? 224U << 23U : 112U << 23U);
  const float denormal = std::bit_cast<float>(magnitude + (113U << 23U)) - std::bit_cast<float>(113U << 23U);
  const uint32_t bits = exponent == 0 ? std::bit_cast<uint32_t>(denormal) : normal;
  return std::bit_cast<float>(bits | static_cast<uint32_t>(half & 0x8000U) << 16U);
}

uint16_t float_to_half(float value);

inline float bfloat16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
uint16_t float_to_bfloat16(float value);

}  // namespace distil_xlstm
