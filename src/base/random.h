// Counter-based random numbers: the same seed and stream give the same numbers on every machine, and the place is one integer.
#pragma once

#include <cstdint>
#include <vector>

namespace distil_xlstm {

// SplitMix64 over a counter. Copyable; state() and the constructor's `position` make it resumable.
class Random {
 public:
  explicit Random(uint64_t seed, uint64_t stream = 0, uint64_t position = 0);
  uint64_t next();                 // 64 random bits
  double uniform();                // [0, 1)
  double normal();                 // mean 0, standard deviation 1 (Box-Muller, two draws each)
  uint64_t below(uint64_t bound);  // [0, bound), without bias
  [[nodiscard]] uint64_t position() const { return position_; }

 private:
  uint64_t key_;
  uint64_t position_;
};

// A uniformly random permutation of 0..count-1.
std::vector<uint64_t> permutation(uint64_t count, uint64_t seed, uint64_t stream);

}  // namespace distil_xlstm
