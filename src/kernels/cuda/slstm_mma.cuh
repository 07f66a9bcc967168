// What both directions of the tensor-core sLSTM scan share: instructions, the layout of a tile, the layout of what is saved.
//
// A block has one warp per 16 units of a head and walks over time with 8 batch rows. All products are m16n8k16: m = 16 units, n = the 8
// rows. Of a product's m-tile, lane (g = lane / 4, c = lane % 4) holds rows g and g + 8 at columns 2c and 2c + 1. Rows g and g + 8 are made
// units 2g and 2g + 1 of the warp, so that a lane has two neighbouring units of two batch rows: all its accesses are 32 bits, eight lanes
// make a full sector, and the four gates of a unit meet in one lane.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/slstm_scan.h"

namespace distil_xlstm::kernels::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr int kPrefetchSteps = 8;  // inputs are asked into L2 this many steps before their use

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two neighbouring values of a half-precision type in one word.
template <typename T>
__device__ inline uint32_t pack(float low, float high);
template <>
__device__ inline uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ inline uint32_t pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <typename T>
__device__ inline float2 unpack(uint32_t word);
template <>
__device__ inline float2 unpack<__nv_bfloat16>(uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
template <>
__device__ inline float2 unpack<__half>(uint32_t word) {
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}

// acc[16 x 8] += a[16 x 16] b[16 x 8].
template <typename T>
__device__ inline void multiply(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void multiply<__nv_bfloat16>(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply<__half>(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four or two 8 x 8 matrices, one row's address from each lane (of two: from the first 16); two of them are the b of one product.
__device__ inline void load_matrices(uint32_t (&x)[4], uint32_t shared_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address));
}
__device__ inline void load_matrices(uint32_t (&x)[2], uint32_t shared_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(x[0]), "=r"(x[1]) : "r"(shared_address));
}

__device__ inline void prefetch_to_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

__device__ inline uint32_t load_word(const void* base, int64_t index_of_unit) {
  return __ldg(reinterpret_cast<const unsigned int*>(static_cast<const uint16_t*>(base) + index_of_unit));
}
__device__ inline void store_word(void* base, int64_t index_of_unit, uint32_t word) {
  *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(base) + index_of_unit) = word;
}

// A number and its complement to 1 in one half-precision value, each with full relative precision: x below 1/2, else -(1 - x). The sign
// tells which, that of zero too.
__device__ inline float encode_fraction(float x, float complement) {
  return x < 0.5f ? x : -complement;
}
struct Fraction {
  float x, complement;
};
__device__ inline Fraction decode_fraction(float code) {
  const bool is_large = __float_as_int(code) < 0;
  const float size = fabsf(code), rest = 1.0f - size;
  return {is_large ? rest : size, is_large ? size : rest};
}

// What backward needs of a token and unit, all of it bounded, whatever the frame m (y = o a):
//   share = i' / n            of a, the rest comes from the token before; fraction, activations' type
//   slope = f' n_before / n sigmoid(-p_f)                                   activations' type
//   o                         fraction, activations' type
//   z, a = c / n              float16: both are at most 1 in size and enter differences
// In memory: first a uint4 per pair of units {share, slope, o, z}, then the edges, then a.
// Edges, per row, head and unit, float32: n after the last token, f' / n and sigmoid(-p_f) of the first; they carry gradients of the
// states, which are in the frame of m, in and out of the scan. f' / n is 0 where a document starts at the first token.
struct SavedLayout {
  uint4* gates_BSHK2;
  float *last_normalizer_BHK, *first_decay_BHK, *first_slope_BHK;
  __half* ratio_BSHK;
};
inline size_t saved_bytes_mma(int64_t B, int64_t S, int64_t H, int64_t K) {
  return size_t(B * S * H * K * 10 + B * H * K * 12);
}
__host__ __device__ inline SavedLayout saved_layout(void* base, int64_t B, int64_t S, int64_t H, int64_t K) {
  SavedLayout x;
  x.gates_BSHK2 = static_cast<uint4*>(base);
  x.last_normalizer_BHK = reinterpret_cast<float*>(x.gates_BSHK2 + B * S * H * K / 2);
  x.first_decay_BHK = x.last_normalizer_BHK + B * H * K;
  x.first_slope_BHK = x.first_decay_BHK + B * H * K;
  x.ratio_BSHK = reinterpret_cast<__half*>(x.first_slope_BHK + B * H * K);
  return x;
}

// States of one unit of one row; the stabilizer in units of log 2.
struct State {
  float c, n, m2;
};

struct Step {
  float y, share, share_complement, slope, o, o_complement, z, ratio, decay, forget_slope;
};

// The cell (docs/mathematics.md 2). Rounding is spelled out where the compiler could choose, so that y has the same bits with and without
// saving. exp(-|x|) never overflows; the three logistic denominators, each in (1, 2], share one reciprocal.
__device__ inline Step advance(State& s, float p_i, float p_f, float p_z, float p_o) {
  const float e_f = exp2_fast(-fabsf(p_f) * kLog2E), e_z = exp2_fast(-2.0f * kLog2E * fabsf(p_z)), e_o = exp2_fast(-fabsf(p_o) * kLog2E);
  const float q_f = 1.0f + e_f, q_z = 1.0f + e_z, q_o = 1.0f + e_o;
  const float p_i2 = __fmul_rn(p_i, kLog2E), carried2 = __fadd_rn(__fmaf_rn(fminf(p_f, 0.0f), kLog2E, -log2_fast(q_f)), s.m2);
  const float q_zo = __fmul_rn(q_z, q_o), inverse = reciprocal_fast(q_zo * q_f);
  const float inverse_f = inverse * q_zo, inverse_zo = inverse * q_f, inverse_z = inverse_zo * q_o, inverse_o = inverse_zo * q_z;
  const float distance = p_i2 - carried2, away = exp2_fast(-fabsf(distance));
  const bool is_input_larger = distance >= 0.0f, takes_input = is_input_larger || s.n == 0.0f;
  const float input = takes_input ? 1.0f : away, forget = is_input_larger ? away : 1.0f;
  s.m2 = takes_input ? p_i2 : carried2;
  Step x;
  x.z = copysignf((1.0f - e_z) * inverse_z, p_z);
  const float o_small = e_o * inverse_o;
  x.o = p_o >= 0.0f ? inverse_o : o_small;
  x.o_complement = p_o >= 0.0f ? o_small : inverse_o;
  const float kept = forget * s.n;
  s.c = __fmaf_rn(forget, s.c, __fmul_rn(input, x.z));
  s.n = __fmaf_rn(forget, s.n, input);
  const float inverse_n = reciprocal_fast(s.n);
  x.ratio = s.c * inverse_n;
  x.y = x.o * x.ratio;
  x.share = input * inverse_n;
  x.share_complement = kept * inverse_n;
  x.forget_slope = (p_f >= 0.0f ? e_f : 1.0f) * inverse_f;
  x.slope = x.share_complement * x.forget_slope;
  x.decay = forget * inverse_n;
  return x;
}

// Keeps what backward needs of one row's pair of units, at its places in gates_BSHK2 and ratio_BSHK.
template <typename T>
__device__ inline void save_step(void* gates, void* ratio, const Step (&step)[2]) {
  const uint32_t share =
      pack<T>(encode_fraction(step[0].share, step[0].share_complement), encode_fraction(step[1].share, step[1].share_complement));
  const uint32_t o = pack<T>(encode_fraction(step[0].o, step[0].o_complement), encode_fraction(step[1].o, step[1].o_complement));
  *static_cast<uint4*>(gates) = {share, pack<T>(step[0].slope, step[1].slope), o, pack<__half>(step[0].z, step[1].z)};
  *static_cast<uint32_t*>(ratio) = pack<__half>(step[0].ratio, step[1].ratio);
}

// Running gradients of one unit of one row.
struct Running {
  float D, E;
};

// Spec 6.1 in quantities that do not depend on the frame m: D = n dc and E = n dn; a = ratio, total = grad_y + dy:
//   Yo = total o;  D += Yo;  E -= Yo a
//   dp_i = share (z D + E);  dp_f = slope (a_before D + E);  dp_z = share (1 - z^2) D;  dp_o = (1 - o) a Yo
// Then D and E move to the token before: times 1 - share, which is left to the caller.
__device__ inline void advance_backward(Running& s, float total, float share, float slope, Fraction o, float z, float ratio,
                                        float ratio_before, float (&grads)[4]) {
  const float gated = total * o.x;
  s.D += gated;
  s.E -= gated * ratio;
  grads[0] = share * (z * s.D + s.E);
  grads[1] = slope * (ratio_before * s.D + s.E);
  grads[2] = share * (1.0f - z * z) * s.D;
  grads[3] = o.complement * ratio * gated;
}

// Where a thread works: units `unit`, `unit` + 1 of rows first_row, first_row + 1 of head h; c is its place among the four lanes that share
// them out. Of a thread without unit or row nothing is stored.
struct Cells {
  int h, unit, c, first_row;
  bool has_unit, has_row[2];

  // Of its first unit in row first_row + j, in tensors [B, H, K].
  __device__ int64_t of_row(int j, int H, int K) const { return (int64_t(first_row + j) * H + h) * K + unit; }
};

// What backward needs of a sequence's first step, where its gradient goes to the initial state.
__device__ inline void save_first_step(const SavedLayout& saved, int64_t at, bool starts, const Step (&step)[2]) {
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    saved.first_decay_BHK[at + v] = starts ? 0.0f : step[v].decay;
    saved.first_slope_BHK[at + v] = step[v].forget_slope;
  }
}

template <bool kSave>
__device__ inline void store_last_states(const SlstmForward& x, const SavedLayout& saved, const Cells& cells, int K, const float (&y)[2][2],
                                         const State (&state)[2][2]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (!cells.has_row[j]) continue;
    const int64_t at = cells.of_row(j, x.H, K);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      x.hidden_BHK[at + v] = y[j][v];
      x.cell_BHK[at + v] = state[j][v].c;
      x.normalizer_BHK[at + v] = state[j][v].n;
      x.stabilizer_BHK[at + v] = state[j][v].m2 * (1.0f / kLog2E);
      if (kSave) saved.last_normalizer_BHK[at + v] = state[j][v].n;
    }
  }
}

__device__ inline void load_last_gradients(const SlstmBackward& x, const SavedLayout& saved, const Cells& cells, int K, float (&dy)[2][2],
                                           Running (&running)[2][2]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (!cells.has_row[j]) continue;
    const int64_t at = cells.of_row(j, x.H, K);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const float n = saved.last_normalizer_BHK[at + v];
      dy[j][v] = x.grad_hidden_BHK[at + v];
      running[j][v] = {n * x.grad_cell_BHK[at + v], n * x.grad_normalizer_BHK[at + v]};
    }
  }
}

// Gradients of the initial states, and of the bias over this block's rows.
__device__ inline void store_first_gradients(const SlstmBackward& x, const Cells& cells, int K, const float (&dy)[2][2],
                                             const Running (&running)[2][2], const float (&bias_sum)[4][2]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (!cells.has_row[j]) continue;
    const int64_t at = cells.of_row(j, x.H, K);
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      x.grad_hidden_BHK[at + v] = dy[j][v];
      x.grad_cell_BHK[at + v] = running[j][v].D;
      x.grad_normalizer_BHK[at + v] = running[j][v].E;
    }
  }
  if (!x.grad_bias_PHGK) return;
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      float sum = bias_sum[gate][v];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (cells.c == 0 && cells.has_unit) x.grad_bias_PHGK[((int64_t(blockIdx.y) * x.H + cells.h) * 4 + gate) * K + cells.unit + v] = sum;
    }
  }
}

// Calls launch with the number of 16-unit tiles that K fits, as std::integral_constant.
template <typename Launch>
cudaError_t launch_by_width(int K, const Launch& launch) {
  if (K <= 16) return launch(std::integral_constant<int, 1>());
  if (K <= 32) return launch(std::integral_constant<int, 2>());
  if (K <= 48) return launch(std::integral_constant<int, 3>());
  if (K <= 64) return launch(std::integral_constant<int, 4>());
  if (K <= 96) return launch(std::integral_constant<int, 6>());
  return launch(std::integral_constant<int, 8>());
}

}  // namespace distil_xlstm::kernels::cuda
