#include <type_traits>

#include "kernels/cuda/slstm_mma.cuh"
#include "kernels/cuda/slstm_mma.h"

namespace distil_xlstm::kernels::cuda {
namespace {

// What backward loads of a token for a lane's two units of one row.
struct Loaded {
  uint4 gates;
  uint32_t grad_y;
};

// Shared memory: dp of even and odd steps, [2][8 rows][4 gates][16 KT], rows padded by 16 bytes.
// kExact: K is 16 KT, so that the distances between gates are known when this is compiled.
template <typename T, int KT, bool kExact>
__global__ void __launch_bounds__(32 * KT, 1) backward_kernel(const SlstmBackward x) {
  constexpr int kWidth = 16 * KT, kPitch = 4 * kWidth + 8, kRows = kSlstmTileRows;
  __shared__ __align__(16) uint16_t dp[2][kRows * kPitch];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, c = lane % 4;
  const int h = blockIdx.x, K = kExact ? 16 * KT : x.K, unit = 16 * warp + 2 * g, first_row = blockIdx.y * kRows + 2 * c;
  const bool has_unit = unit < K, has_row[2] = {has_unit && first_row < x.B, has_unit && first_row + 1 < x.B};
  const Cells cells{h, unit, c, first_row, has_unit, {has_row[0], has_row[1]}};
  const SavedLayout saved = saved_layout(const_cast<void*>(x.saved), x.B, x.S, x.H, K);

  // a: R[e][gate][d] with m = e, k = (gate, d).
  uint32_t r[4][KT][4];
  const T* matrix = static_cast<const T*>(x.r_HKGK) + int64_t(h) * K * 4 * K;
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
#pragma unroll
    for (int k = 0; k < KT; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int e = unit + i % 2, d = 16 * k + 8 * (i / 2) + 2 * c;
        r[gate][k][i] = has_unit && d < K ? load_word(matrix, int64_t(e * 4 + gate) * K + d) : 0u;
      }
    }
  }

  Running running[2][2] = {};
  float dy[2][2] = {}, bias_sum[4][2] = {};
  load_last_gradients(x, saved, cells, K, dy, running);

  // Of a lane without unit or row, loads are those of another one, and nothing is stored.
  const int64_t row_step = int64_t(x.S) * x.H * K, token_step = int64_t(x.H) * K;
  const char *gates[2], *ratios[2], *grads_y[2];
  char* outputs[2];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int row = min(first_row + j, x.B - 1), loaded_unit = has_unit ? unit : 0;
    const int64_t place = row * row_step + (x.S - 1) * token_step + int64_t(h) * K;
    gates[j] = reinterpret_cast<const char*>(saved.gates_BSHK2) + 8 * (place + loaded_unit);
    ratios[j] = reinterpret_cast<const char*>(saved.ratio_BSHK) + 2 * (place + loaded_unit);
    grads_y[j] = static_cast<const char*>(x.grad_y_BSHK) + 2 * (place + loaded_unit);
    outputs[j] = static_cast<char*>(x.grad_wx_BSHGK) + 2 * (4 * place + unit);
  }
  const auto load = [&](Loaded(&loaded)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
      loaded[j] = {__ldg(reinterpret_cast<const uint4*>(gates[j])), __ldg(reinterpret_cast<const unsigned int*>(grads_y[j]))};
  };
  const auto load_ratio = [&](uint32_t (&ratio)[2]) {
#pragma unroll
    for (int j = 0; j < 2; ++j) ratio[j] = __ldg(reinterpret_cast<const unsigned int*>(ratios[j]));
  };
  const auto step_ratios_back = [&]() {
    ratios[0] -= 2 * token_step;
    ratios[1] -= 2 * token_step;
  };
  // One thread per 128 bytes of the tile's gates, ratios and gradients.
  const int gate_lines = (8 * K + 127) / 128, plain_lines = (2 * K + 127) / 128, lines = gate_lines + 2 * plain_lines;
  const int line_row = threadIdx.x / lines, line = threadIdx.x % lines;
  const bool prefetches = line_row < kRows && blockIdx.y * kRows + line_row < x.B;
  const bool is_gate_line = line < gate_lines, is_ratio_line = line < gate_lines + plain_lines;
  const int line_bytes = is_gate_line ? 8 : 2;
  const char* ahead = is_gate_line    ? reinterpret_cast<const char*>(saved.gates_BSHK2) + 128 * line
                      : is_ratio_line ? reinterpret_cast<const char*>(saved.ratio_BSHK) + 128 * (line - gate_lines)
                                      : static_cast<const char*>(x.grad_y_BSHK) + 128 * (line - gate_lines - plain_lines);
  ahead += line_bytes * ((int64_t(blockIdx.y) * kRows + line_row) * row_step + (x.S - 1 - kPrefetchSteps) * token_step + int64_t(h) * K);

  Loaded loaded[2];
  uint32_t ratio[2], ratio_before[2] = {}, ratio_two_before[2] = {};  // of token t, t - 1, t - 2
  const uint8_t* is_start = x.is_start_BS ? x.is_start_BS + int64_t(first_row) * x.S : nullptr;
  load(loaded);
  load_ratio(ratio);
  if (x.S > 1) {
    step_ratios_back();
    load_ratio(ratio_before);
  }
  for (int i = threadIdx.x; i < 2 * kRows * kPitch; i += blockDim.x) (&dp[0][0])[i] = 0;
  __syncthreads();
  const uint32_t matrix_row = (lane % 8) * kPitch + 8 * (lane / 8);
  const uint32_t shared_base = static_cast<uint32_t>(__cvta_generic_to_shared(dp[0])) + 2 * matrix_row;
  for (int t = x.S - 1; t >= 0; --t) {
    if (t > 1) {
      step_ratios_back();
      load_ratio(ratio_two_before);
    }
    bool starts[2] = {};
    if (is_start) {
      if (has_row[0]) starts[0] = is_start[t];
      if (has_row[1]) starts[1] = is_start[x.S + t];
    }
    const auto advance_rows = [&](auto is_first) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 share = unpack<T>(loaded[j].gates.x), slope = unpack<T>(loaded[j].gates.y), o = unpack<T>(loaded[j].gates.z);
        const float2 z = unpack<__half>(loaded[j].gates.w), grad_y = unpack<T>(loaded[j].grad_y);
        const float2 a = unpack<__half>(ratio[j]), before = unpack<__half>(ratio_before[j]);
        float grads[2][4];
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          Running& s = running[j][v];
          const Fraction part = decode_fraction(v ? share.y : share.x);
          advance_backward(s, (v ? grad_y.y : grad_y.x) + dy[j][v], part.x, v ? slope.y : slope.x, decode_fraction(v ? o.y : o.x),
                           v ? z.y : z.x, v ? a.y : a.x, v ? before.y : before.x, grads[v]);
          if (!decltype(is_first)::value) {
            s.D *= part.complement;
            s.E *= part.complement;
          } else if (has_row[j]) {  // to the initial state, in its own frame
            const int64_t at = (int64_t(first_row + j) * x.H + h) * K + unit + v;
            const float decay = saved.first_decay_BHK[at];
            s.D *= decay;
            s.E *= decay;
            grads[v][1] = saved.first_slope_BHK[at] * (x.initial_cell_BHK[at] * s.D + x.initial_normalizer_BHK[at] * s.E);
          }
        }
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          const uint32_t word = pack<T>(grads[0][gate], grads[1][gate]);
          if (has_unit) store_word(dp[t & 1], (2 * c + j) * kPitch + gate * kWidth + unit, word);
          if (has_row[j]) *reinterpret_cast<uint32_t*>(outputs[j] + 2 * gate * K) = word;
          bias_sum[gate][0] += has_row[j] ? grads[0][gate] : 0.0f;
          bias_sum[gate][1] += has_row[j] ? grads[1][gate] : 0.0f;
        }
        outputs[j] -= 8 * token_step;
      }
    };
    if (t == 0)
      advance_rows(std::true_type());
    else
      advance_rows(std::false_type());
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      ratio[j] = ratio_before[j];
      ratio_before[j] = ratio_two_before[j];
    }
    if (t > 0) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        gates[j] -= 8 * token_step;
        grads_y[j] -= 2 * token_step;
      }
      load(loaded);
    }
    if (prefetches && t >= kPrefetchSteps) prefetch_to_l2(ahead);
    ahead -= line_bytes * token_step;
    __syncthreads();
    const uint32_t base = shared_base + (t & 1) * (2 * kRows * kPitch);
    float acc[4][4] = {};  // by gate: four chains of sums in flight
#pragma unroll
    for (int i = 0; i < 4 * KT; i += 2) {
      uint32_t b[4];
      load_matrices(b, base + 32 * i);
      multiply<T>(acc[i % 4], r[i / KT][i % KT], b[0], b[1]);
      multiply<T>(acc[(i + 1) % 4], r[(i + 1) / KT][(i + 1) % KT], b[2], b[3]);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const int at = 2 * v + j;
        dy[j][v] = starts[j] ? 0.0f : (acc[0][at] + acc[1][at]) + (acc[2][at] + acc[3][at]);
      }
    }
  }
  store_first_gradients(x, cells, K, dy, running, bias_sum);
}

template <typename T, int KT>
cudaError_t launch(const SlstmBackward& x, cudaStream_t stream) {
  const auto kernel = x.K == 16 * KT ? backward_kernel<T, KT, true> : backward_kernel<T, KT, false>;
  kernel<<<dim3(x.H, slstm_num_tiles(x.B)), 32 * KT, 0, stream>>>(x);
  return cudaGetLastError();
}

}  // namespace

cudaError_t slstm_backward_mma(const SlstmBackward& x, cudaStream_t stream) {
  return launch_by_width(x.K, [&](auto tiles) {
    return x.type == Type::bfloat16 ? launch<__nv_bfloat16, tiles()>(x, stream) : launch<__half, tiles()>(x, stream);
  });
}

}  // namespace distil_xlstm::kernels::cuda
