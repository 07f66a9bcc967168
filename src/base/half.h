// float16 and bfloat16 to and from float, round to nearest even.
#pragma once

#include <bit>
#include <cstdint>

namespace distil_xlstm {

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
inline float bfloat16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
uint16_t float_to_bfloat16(float value);

}  // namespace distil_xlstm
