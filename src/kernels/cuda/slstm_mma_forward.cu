#include "kernels/cuda/slstm_mma.cuh"
#include "kernels/cuda/slstm_mma.h"

namespace distil_xlstm::kernels::cuda {
namespace {

// Shared memory: h of even and odd steps, [2][8 rows][16 KT + 8] (16 bytes of padding put the rows of a matrix in different banks).
// kExact: K is 16 KT, so that the distances between gates are known when this is compiled.
template <typename T, int KT, bool kExact, bool kSave>
__global__ void __launch_bounds__(32 * KT, 1) forward_kernel(const SlstmForward x) {
  constexpr int kPitch = 16 * KT + 8, kRows = kSlstmTileRows;
  __shared__ __align__(16) uint16_t hidden[2][kRows * kPitch];
  __shared__ __align__(8) float bias[4][16 * KT];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  const int h = blockIdx.x, K = kExact ? 16 * KT : x.K, unit = 16 * warp + 2 * g, first_row = blockIdx.y * kRows + 2 * c;
  const bool has_unit = unit < K, has_row[2] = {has_unit && first_row < x.B, has_unit && first_row + 1 < x.B};
  const Cells cells{h, unit, c, first_row, has_unit, {has_row[0], has_row[1]}};
  const SavedLayout saved = saved_layout(x.saved, x.B, x.S, x.H, K);

  // a: R[e][gate][d] with m = d, k = e.
  uint32_t r[4][KT][4];
  const T* matrix = static_cast<const T*>(x.r_HKGK) + int64_t(h) * K * 4 * K;
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
#pragma unroll
    for (int k = 0; k < KT; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int e = 16 * k + 8 * half + 2 * c;
        const uint32_t even = has_unit && e < K ? load_word(matrix, int64_t(e * 4 + gate) * K + unit) : 0u;
        const uint32_t odd = has_unit && e + 1 < K ? load_word(matrix, int64_t((e + 1) * 4 + gate) * K + unit) : 0u;
        r[gate][k][2 * half] = __byte_perm(even, odd, 0x5410);
        r[gate][k][2 * half + 1] = __byte_perm(even, odd, 0x7632);
      }
    }
  }
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
    if (c < 2) bias[gate][16 * warp + 2 * g + c] = has_unit ? x.bias_HGK[(h * 4 + gate) * K + unit + c] : 0.0f;
  }
  for (int i = threadIdx.x; i < 2 * kRows * kPitch; i += blockDim.x) (&hidden[0][0])[i] = 0;
  __syncthreads();
  State state[2][2] = {};
  float y[2][2] = {};
  bool starts[2] = {};  // at the step to come
  const uint8_t* is_start = x.is_start_BS ? x.is_start_BS + int64_t(first_row) * x.S : nullptr;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (!has_row[j]) continue;
    const int64_t at = (int64_t(first_row + j) * x.H + h) * K + unit;
    starts[j] = is_start && is_start[int64_t(j) * x.S];
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      y[j][v] = x.initial_hidden_BHK[at + v];
      state[j][v] = {x.cell_BHK[at + v], x.normalizer_BHK[at + v], x.stabilizer_BHK[at + v] * kLog2E};
    }
    const uint32_t word = starts[j] ? 0u : pack<T>(y[j][0], y[j][1]);
    store_word(hidden[0], (2 * c + j) * kPitch + unit, word);
  }

  // Of a lane without unit or row, loads are those of another one, and nothing is stored.
  const int64_t row_step = int64_t(x.S) * x.H * K, token_step = int64_t(x.H) * K;
  const char* inputs[2];
  char *outputs[2], *ratios[2], *gates[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int row = min(first_row + j, x.B - 1), loaded_unit = has_unit ? unit : 0;
    const int64_t place = row * row_step + int64_t(h) * K;
    inputs[j] = static_cast<const char*>(x.wx_BSHGK) + 2 * (4 * place + loaded_unit);
    outputs[j] = static_cast<char*>(x.y_BSHK) + 2 * (place + unit);
    ratios[j] = reinterpret_cast<char*>(saved.ratio_BSHK) + 2 * (place + unit);
    gates[j] = reinterpret_cast<char*>(saved.gates_BSHK2) + 8 * (place + unit);
  }
  const auto load_inputs = [&](uint32_t (&words)[2][4]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) words[j][gate] = __ldg(reinterpret_cast<const unsigned int*>(inputs[j] + 2 * gate * K));
    }
  };
  float acc[4][4];
  const auto set_sums = [&](const uint32_t (&words)[2][4]) {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const float2 offset = *reinterpret_cast<const float2*>(&bias[gate][unit]);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 values = unpack<T>(words[j][gate]);
        acc[gate][j] = values.x + offset.x;      // row g of the m-tile: the even unit
        acc[gate][2 + j] = values.y + offset.y;  // row g + 8: the odd one
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(acc[gate][i]));  // now, not after the barrier
    }
  };
  // One thread per 128 bytes of the tile's inputs.
  const int lines = (8 * K + 127) / 128, line_row = threadIdx.x / lines, line = threadIdx.x % lines;
  const bool prefetches = line_row < kRows && blockIdx.y * kRows + line_row < x.B;
  const char* ahead = static_cast<const char*>(x.wx_BSHGK) + 8 * ((int64_t(blockIdx.y) * kRows + line_row) * row_step + int64_t(h) * K) +
                      128 * line + 8 * kPrefetchSteps * token_step;

  uint32_t words[2][4];
  load_inputs(words);
  set_sums(words);
  const uint32_t matrix_row = (lane % 8) * kPitch + 8 * (lane / 8);
  const uint32_t shared_base = static_cast<uint32_t>(__cvta_generic_to_shared(hidden[0])) + 2 * matrix_row;
  for (int t = 0; t < x.S; ++t) {
    bool starts_next[2] = {};
    if (t + 1 < x.S) {
      inputs[0] += 8 * token_step;
      inputs[1] += 8 * token_step;
      load_inputs(words);
      if (is_start) {
        if (has_row[0]) starts_next[0] = is_start[t + 1];
        if (has_row[1]) starts_next[1] = is_start[x.S + t + 1];
      }
    }
    if (prefetches && t + kPrefetchSteps < x.S) prefetch_to_l2(ahead);
    ahead += 8 * token_step;
    __syncthreads();
    const uint32_t base = shared_base + (t & 1) * (2 * kRows * kPitch);
#pragma unroll
    for (int k = 0; k + 1 < KT; k += 2) {
      uint32_t b[4];
      load_matrices(b, base + 32 * k);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) multiply<T>(acc[gate], r[gate][k + i], b[2 * i], b[2 * i + 1]);
      }
    }
    if constexpr (KT % 2 == 1) {
      uint32_t b[2];
      load_matrices(b, base + 32 * (KT - 1));
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) multiply<T>(acc[gate], r[gate][KT - 1], b[0], b[1]);
    }
    Step step[2][2];
    uint32_t y_words[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        if (starts[j]) state[j][v] = {};
        step[j][v] = advance(state[j][v], acc[0][2 * v + j], acc[1][2 * v + j], acc[2][2 * v + j], acc[3][2 * v + j]);
        y[j][v] = step[j][v].y;
      }
      y_words[j] = pack<T>(y[j][0], y[j][1]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (has_unit) store_word(hidden[(t + 1) & 1], (2 * c + j) * kPitch + unit, starts_next[j] ? 0u : y_words[j]);
    }
    set_sums(words);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (has_row[j]) {
        *reinterpret_cast<uint32_t*>(outputs[j]) = y_words[j];
        if (kSave) save_step<T>(gates[j], ratios[j], step[j]);
      }
      outputs[j] += 2 * token_step;
      ratios[j] += 2 * token_step;
      gates[j] += 8 * token_step;
    }
    if (kSave && t == 0) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (has_row[j]) save_first_step(saved, cells.of_row(j, x.H, K), starts[j], step[j]);
      }
    }
    starts[0] = starts_next[0];
    starts[1] = starts_next[1];
  }
  store_last_states<kSave>(x, saved, cells, K, y, state);
}

template <typename T, int KT>
cudaError_t launch(const SlstmForward& x, cudaStream_t stream) {
  const dim3 grid(x.H, slstm_num_tiles(x.B));
  const bool is_exact = x.K == 16 * KT;
  const auto kernel = x.saved ? (is_exact ? forward_kernel<T, KT, true, true> : forward_kernel<T, KT, false, true>)
                              : (is_exact ? forward_kernel<T, KT, true, false> : forward_kernel<T, KT, false, false>);
  kernel<<<grid, 32 * KT, 0, stream>>>(x);
  return cudaGetLastError();
}

}  // namespace

cudaError_t slstm_forward_mma(const SlstmForward& x, cudaStream_t stream) {
  return launch_by_width(x.K, [&](auto tiles) {
    return x.type == Type::bfloat16 ? launch<__nv_bfloat16, tiles()>(x, stream) : launch<__half, tiles()>(x, stream);
  });
}

}  // namespace distil_xlstm::kernels::cuda
