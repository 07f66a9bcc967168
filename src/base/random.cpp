#include "base/random.h"

#include <cmath>
#include <numbers>
#include <numeric>
#include <utility>

namespace distil_xlstm {
namespace {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30U)) * 0xBF58476D1CE4E5B9ULL;
  value = (value ^ (value >> 27U)) * 0x94D049BB133111EBULL;
  return value ^ (value >> 31U);
}

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ULL;

}  // namespace

Random::Random(uint64_t seed, uint64_t stream, uint64_t position)
    : key_(mix(seed + kGolden) ^ mix(mix(stream * 2 + 1) + kGolden)), position_(position) {}

uint64_t Random::next() {
  return mix(key_ + (++position_) * kGolden);
}

double Random::uniform() {
  return static_cast<double>(next() >> 11U) * 0x1.0p-53;
}

double Random::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

uint64_t Random::below(uint64_t bound) {
  // Rejects the part of the range that would favour small values.
  const uint64_t limit = bound == 0 ? 0 : (0 - bound) % bound;
  for (;;) {
    const uint64_t bits = next();
    if (bits >= limit) return bound == 0 ? 0 : bits % bound;
  }
}

std::vector<uint64_t> permutation(uint64_t count, uint64_t seed, uint64_t stream) {
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), uint64_t{0});
  Random random(seed, stream);
  for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  return order;
}

}  // namespace distil_xlstm
