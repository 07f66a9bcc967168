// 16 bytes of activations at a time: the widest access of a thread, and how it becomes floats.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "kernels/cuda/convert.cuh"

namespace distil_xlstm::kernels::cuda {

template <typename T>
inline constexpr int kVectorSize = 16 / int(sizeof(T));

// Null counts as aligned.
inline bool are_aligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  }
  return true;
}

__device__ inline float2 unpack_pair(unsigned bits, __nv_bfloat16) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}
__device__ inline float2 unpack_pair(unsigned bits, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
__device__ inline unsigned pack_pair(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}
__device__ inline unsigned pack_pair(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

template <typename T>
__device__ inline void unpack(const uint4& bits, float (&x)[kVectorSize<T>]) {
  const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4) {
      x[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = unpack_pair(words[i], T{});
      x[2 * i] = pair.x;
      x[2 * i + 1] = pair.y;
    }
  }
}

// Values from memory aligned for N * sizeof(T) bytes, at most 16 bytes an access. N is 1, 2, 4 or 8. The memory must not change while the
// kernel runs, so that loads may move ahead of stores.
template <typename T, int N>
__device__ inline void load_values(float (&x)[N], const T* from) {
  if constexpr (N == 1) {
    x[0] = to_float(__ldg(from));
  } else if constexpr (N == 2) {
    if constexpr (sizeof(T) == 4) {
      const float2 pair = __ldg(reinterpret_cast<const float2*>(from));
      x[0] = pair.x, x[1] = pair.y;
    } else {
      const float2 pair = unpack_pair(__ldg(reinterpret_cast<const unsigned*>(from)), T{});
      x[0] = pair.x, x[1] = pair.y;
    }
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 values = __ldg(reinterpret_cast<const float4*>(from + i));
      x[i] = values.x, x[i + 1] = values.y, x[i + 2] = values.z, x[i + 3] = values.w;
    }
  } else if constexpr (N == 8) {
    unpack<T>(__ldg(reinterpret_cast<const uint4*>(from)), x);
  } else {
    static_assert(N == 4);
    const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from));
    const float2 low = unpack_pair(bits.x, T{}), high = unpack_pair(bits.y, T{});
    x[0] = low.x, x[1] = low.y, x[2] = high.x, x[3] = high.y;
  }
}

template <typename T, int N>
__device__ inline void store_values(T* to, const float (&x)[N]) {
  if constexpr (N == 1) {
    *to = from_float<T>(x[0]);
  } else if constexpr (N == 2) {
    if constexpr (sizeof(T) == 4) {
      *reinterpret_cast<float2*>(to) = float2{x[0], x[1]};
    } else {
      *reinterpret_cast<unsigned*>(to) = pack_pair(x[0], x[1], T{});
    }
  } else if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < N; i += 4) *reinterpret_cast<float4*>(to + i) = float4{x[i], x[i + 1], x[i + 2], x[i + 3]};
  } else if constexpr (N == 8) {
    *reinterpret_cast<uint4*>(to) =
        uint4{pack_pair(x[0], x[1], T{}), pack_pair(x[2], x[3], T{}), pack_pair(x[4], x[5], T{}), pack_pair(x[6], x[7], T{})};
  } else {
    static_assert(N == 4);
    *reinterpret_cast<uint2*>(to) = uint2{pack_pair(x[0], x[1], T{}), pack_pair(x[2], x[3], T{})};
  }
}

// N values of T as they lie in memory, 4, 8 or 16 bytes: what is asked for early must not be touched before it is there.
template <typename T, int N>
struct Packed {
  static constexpr int kWords = N * int(sizeof(T)) / 4;
  static_assert(kWords == 1 || kWords == 2 || kWords == 4);
  unsigned words[kWords];

  __device__ void load(const T* from) {
    if constexpr (kWords == 4) {
      const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
      words[0] = bits.x, words[1] = bits.y, words[2] = bits.z, words[3] = bits.w;
    } else if constexpr (kWords == 2) {
      const uint2 bits = __ldg(reinterpret_cast<const uint2*>(from));
      words[0] = bits.x, words[1] = bits.y;
    } else {
      words[0] = __ldg(reinterpret_cast<const unsigned*>(from));
    }
  }
  __device__ void unpack_into(float (&x)[N]) const {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] = __uint_as_float(words[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const float2 pair = unpack_pair(words[i], T{});
        x[2 * i] = pair.x;
        x[2 * i + 1] = pair.y;
      }
    }
  }
};

}  // namespace distil_xlstm::kernels::cuda
