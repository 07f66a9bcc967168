// The tensor-core sLSTM scan for heads that do not fit one multiprocessor: a thread-block cluster per head and tile of 8 batch rows, one
// block of four warps per 64 units. Each block holds R's columns of its own units (4 gates x 64), one part as register fragments, the rest
// as fragments in shared memory. Forward: every block needs all of h and sends its own units' h to all. Backward: a block multiplies its
// own dp into dy of all units and sends each block the partial sums of its units, which are added in the order of the blocks.
#include <algorithm>

#include "kernels/cuda/slstm_mma.cuh"
#include "kernels/cuda/slstm_mma.h"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kUnits = 64, kThreads = 128, kRows = kSlstmTileRows;
constexpr int kRegisterTiles = 8;           // forward: k-tiles of each warp in registers
constexpr int kRegisterRowTiles = 2;        // backward: m-tiles of each warp in registers
constexpr int kGradPitch = 4 * kUnits + 8;  // of dp in shared memory
constexpr int kPartPitch = kUnits + 4;      // of partial sums: pairs of rows 8 banks apart

// Clusters exist from compute capability 9.0 on: slstm_fits_cluster.
__device__ inline void cluster_arrive() {
  __syncwarp();
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ inline void cluster_wait() {
  __syncwarp();
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// The address of the same place in the shared memory of another block of the cluster.
__device__ inline uint32_t address_in_block(uint32_t shared_address, uint32_t block) {
  uint32_t address = 0;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address), "r"(block));
#endif
  return address;
}
__device__ inline void store_remote(uint32_t address, uint32_t word) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
#endif
}
__device__ inline void store_remote(uint32_t address, float x, float y) {
#if __CUDA_ARCH__ >= 900
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(x), "f"(y) : "memory");
#endif
}
__device__ inline uint32_t shared_address_of(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

int num_blocks(int K) {
  return (K + kUnits - 1) / kUnits;
}
// In k- or m-tiles of 16; even, so that forward takes two at a time.
__host__ __device__ inline int num_tiles(int K) {
  return (K + 31) / 32 * 2;
}
size_t forward_shared_bytes(int K) {
  const int tiles = num_tiles(K);
  return sizeof(uint16_t) * 2 * kRows * (16 * tiles + 8) +
         sizeof(uint4) * 4 * kThreads * (tiles > kRegisterTiles ? tiles - kRegisterTiles : 0);
}
size_t backward_shared_bytes(int K) {
  const int rest = num_tiles(K) - 4 * kRegisterRowTiles;
  return sizeof(uint16_t) * kRows * kGradPitch + sizeof(float) * num_blocks(K) * kRows * kPartPitch +
         sizeof(uint4) * 16 * 32 * (rest > 0 ? rest : 0);
}

// Where a thread works: lane (g, c) of a warp has units `unit`, `unit` + 1 of rows first_row, first_row + 1 (slstm_mma.cuh).
struct Thread : Cells {
  int lane, warp, g, blocks, block, local_unit;
  __device__ Thread(int B, int H, int K) {
    lane = threadIdx.x % 32;
    warp = threadIdx.x / 32;
    g = lane / 4;
    c = lane % 4;
    blocks = gridDim.x / H;  // the cluster is (blocks, 1, 1)
    block = blockIdx.x % blocks;
    h = blockIdx.x / blocks;
    local_unit = 16 * warp + 2 * g;
    unit = block * kUnits + local_unit;
    first_row = blockIdx.y * kRows + 2 * c;
    has_unit = unit < K;
    has_row[0] = has_unit && first_row < B;
    has_row[1] = has_unit && first_row + 1 < B;
  }
};

// Shared memory: h of even and odd steps [2][8 rows][pitch], then the k-tiles of R beyond kRegisterTiles [tile][gate][thread].
template <typename T, bool kSave>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const SlstmForward x) {
  extern __shared__ uint4 shared[];
  const int K = x.K, tiles = num_tiles(K), pitch = 16 * tiles + 8;
  uint16_t* hidden = reinterpret_cast<uint16_t*>(shared);
  uint4* rest = shared + 2 * kRows * pitch / 8 + threadIdx.x;
  const Thread at(x.B, x.H, K);
  const SavedLayout saved = saved_layout(x.saved, x.B, x.S, x.H, K);
  const T* matrix = static_cast<const T*>(x.r_HKGK) + int64_t(at.h) * K * 4 * K;

  const auto fragment = [&](int gate, int k, uint32_t (&a)[4]) {  // R[e][gate][d] with m = d, k = e
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int e = 16 * k + 8 * half + 2 * at.c;
      const uint32_t even = at.has_unit && e < K ? load_word(matrix, int64_t(e * 4 + gate) * K + at.unit) : 0u;
      const uint32_t odd = at.has_unit && e + 1 < K ? load_word(matrix, int64_t((e + 1) * 4 + gate) * K + at.unit) : 0u;
      a[2 * half] = __byte_perm(even, odd, 0x5410);
      a[2 * half + 1] = __byte_perm(even, odd, 0x7632);
    }
  };
  uint32_t r[4][kRegisterTiles][4];
  float bias[4][2] = {};
#pragma unroll
  for (int gate = 0; gate < 4; ++gate) {
#pragma unroll
    for (int k = 0; k < kRegisterTiles; ++k) fragment(gate, k, r[gate][k]);
    for (int k = kRegisterTiles; k < tiles; ++k) {
      uint32_t a[4];
      fragment(gate, k, a);
      rest[((k - kRegisterTiles) * 4 + gate) * kThreads] = {a[0], a[1], a[2], a[3]};  // read by this thread alone
    }
#pragma unroll
    for (int v = 0; v < 2; ++v) bias[gate][v] = at.has_unit ? x.bias_HGK[(at.h * 4 + gate) * K + at.unit + v] : 0.0f;
  }
  for (int i = threadIdx.x; i < 2 * kRows * pitch / 8; i += kThreads) shared[i] = {};
  cluster_arrive();
  cluster_wait();  // all are cleared

  const uint32_t own_hidden = shared_address_of(hidden);
  const auto send = [&](int parity, int j, uint32_t word) {
    const uint32_t place = own_hidden + 2 * ((parity * kRows + 2 * at.c + j) * pitch + at.unit);
    if (!at.has_unit) return;
    for (int block = 0; block < at.blocks; ++block) store_remote(address_in_block(place, block), word);
  };
  State state[2][2] = {};
  float y[2][2] = {};
  bool starts[2] = {};  // at the step to come
  const uint8_t* is_start = x.is_start_BS ? x.is_start_BS + int64_t(at.first_row) * x.S : nullptr;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    if (!at.has_row[j]) continue;
    const int64_t from = (int64_t(at.first_row + j) * x.H + at.h) * K + at.unit;
    starts[j] = is_start && is_start[int64_t(j) * x.S];
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      y[j][v] = x.initial_hidden_BHK[from + v];
      state[j][v] = {x.cell_BHK[from + v], x.normalizer_BHK[from + v], x.stabilizer_BHK[from + v] * kLog2E};
    }
    send(0, j, starts[j] ? 0u : pack<T>(y[j][0], y[j][1]));
  }
  cluster_arrive();

  const int64_t row_step = int64_t(x.S) * x.H * K, token_step = int64_t(x.H) * K;
  int64_t place = int64_t(at.first_row) * row_step + int64_t(at.h) * K;
  uint32_t words[2][4];
  const auto load_inputs = [&](int64_t from) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int gate = 0; gate < 4; ++gate)
        words[j][gate] = at.has_row[j] ? load_word(x.wx_BSHGK, 4 * (from + j * row_step) + gate * K + at.unit) : 0u;
    }
  };
  // Two sums a gate: chains of products half as long.
  float acc[2][4][4];
  const auto set_sums = [&]() {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 values = unpack<T>(words[j][gate]);
        acc[0][gate][j] = values.x + bias[gate][0];
        acc[0][gate][2 + j] = values.y + bias[gate][1];
        acc[1][gate][j] = acc[1][gate][2 + j] = 0.0f;
      }
    }
  };
  // One thread per row and gate: a block's 64 units are 128 bytes of it.
  const int line_row = threadIdx.x / 4, line_gate = threadIdx.x % 4;
  const bool prefetches = line_row < kRows && int(blockIdx.y) * kRows + line_row < x.B;
  const char* ahead = static_cast<const char*>(x.wx_BSHGK) + 8 * ((int64_t(blockIdx.y) * kRows + line_row) * row_step + int64_t(at.h) * K) +
                      2 * (line_gate * K + at.block * kUnits) + 8 * kPrefetchSteps * token_step;
  load_inputs(place);
  set_sums();
  const uint32_t matrix_row = own_hidden + 2 * ((at.lane % 8) * pitch + 8 * (at.lane / 8));
  for (int t = 0; t < x.S; ++t) {
    bool starts_next[2] = {};
    if (t + 1 < x.S) {
      load_inputs(place + token_step);
      if (is_start) {
        if (at.has_row[0]) starts_next[0] = is_start[t + 1];
        if (at.has_row[1]) starts_next[1] = is_start[x.S + t + 1];
      }
    }
    if (prefetches && t + kPrefetchSteps < x.S) prefetch_to_l2(ahead);
    ahead += 8 * token_step;
    cluster_wait();
    const uint32_t base = matrix_row + (t & 1) * (2 * kRows * pitch);
#pragma unroll
    for (int k = 0; k < kRegisterTiles; k += 2) {
      uint32_t b[4];
      load_matrices(b, base + 32 * k);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) multiply<T>(acc[i][gate], r[gate][k + i], b[2 * i], b[2 * i + 1]);
      }
    }
    for (int k = kRegisterTiles; k < tiles; k += 2) {
      uint32_t b[4];
      load_matrices(b, base + 32 * k);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) {
          const uint4 word = rest[((k + i - kRegisterTiles) * 4 + gate) * kThreads];
          const uint32_t a[4] = {word.x, word.y, word.z, word.w};
          multiply<T>(acc[i][gate], a, b[2 * i], b[2 * i + 1]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      Step step[2];
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const int i = 2 * v + j;
        if (starts[j]) state[j][v] = {};
        step[v] = advance(state[j][v], acc[0][0][i] + acc[1][0][i], acc[0][1][i] + acc[1][1][i], acc[0][2][i] + acc[1][2][i],
                          acc[0][3][i] + acc[1][3][i]);
        y[j][v] = step[v].y;
      }
      const uint32_t word = pack<T>(y[j][0], y[j][1]);
      send((t + 1) & 1, j, starts_next[j] ? 0u : word);
      if (!at.has_row[j]) continue;
      const int64_t to = place + j * row_step + at.unit;
      store_word(x.y_BSHK, to, word);
      if (kSave) {
        save_step<T>(saved.gates_BSHK2 + to / 2, saved.ratio_BSHK + to, step);
        if (t == 0) save_first_step(saved, at.of_row(j, x.H, K), starts[j], step);
      }
    }
    cluster_arrive();
    starts[0] = starts_next[0];
    starts[1] = starts_next[1];
    place += token_step;
    set_sums();
  }
  cluster_wait();  // no block leaves while another still writes to it
  store_last_states<kSave>(x, saved, at, K, y, state);
}

// Shared memory: dp of the block's units [8 rows][4 gates][64], partial sums of their dy [block][8 rows][64], then the m-tiles of R beyond
// the registers' [tile][k-tile][lane]. Warp w multiplies m-tiles w, w + 4, ...; k runs over (gate, own unit) in 16 k-tiles.
template <typename T>
__global__ void __launch_bounds__(kThreads, 1) backward_kernel(const SlstmBackward x) {
  extern __shared__ uint4 shared[];
  const int K = x.K, tiles = num_tiles(K);
  const Thread at(x.B, x.H, K);
  uint16_t* dp = reinterpret_cast<uint16_t*>(shared);
  float* parts = reinterpret_cast<float*>(dp + kRows * kGradPitch);
  uint4* rest = reinterpret_cast<uint4*>(parts + at.blocks * kRows * kPartPitch) + at.lane;
  const SavedLayout saved = saved_layout(const_cast<void*>(x.saved), x.B, x.S, x.H, K);
  const T* matrix = static_cast<const T*>(x.r_HKGK) + int64_t(at.h) * K * 4 * K;

  const auto fragment = [&](int tile, int k, uint32_t (&a)[4]) {  // R[e][gate][d] with m = e, k = (gate, d)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int e = 16 * tile + 2 * at.g + i % 2, d = at.block * kUnits + 16 * (k % 4) + 8 * (i / 2) + 2 * at.c;
      a[i] = e < K && d < K ? load_word(matrix, int64_t(e * 4 + k / 4) * K + d) : 0u;
    }
  };
  uint32_t r[kRegisterRowTiles][16][4];
#pragma unroll
  for (int k = 0; k < 16; ++k) {
#pragma unroll
    for (int i = 0; i < kRegisterRowTiles; ++i) fragment(at.warp + 4 * i, k, r[i][k]);
    for (int tile = at.warp + 4 * kRegisterRowTiles; tile < tiles; tile += 4) {
      uint32_t a[4];
      fragment(tile, k, a);
      rest[((tile - 4 * kRegisterRowTiles) * 16 + k) * 32] = {a[0], a[1], a[2], a[3]};  // read by this thread alone
    }
  }
  for (int i = threadIdx.x; i < at.blocks * kRows * kPartPitch; i += kThreads) parts[i] = 0.0f;

  Running running[2][2] = {};
  float dy[2][2] = {}, bias_sum[4][2] = {};
  load_last_gradients(x, saved, at, K, dy, running);
  const int64_t row_step = int64_t(x.S) * x.H * K, token_step = int64_t(x.H) * K;
  int64_t place = int64_t(at.first_row) * row_step + (x.S - 1) * token_step + int64_t(at.h) * K;
  uint4 gates[2];
  uint32_t grad_y[2], ratio[2], ratio_before[2] = {}, ratio_two_before[2] = {};  // ratio: of token t, t - 1, t - 2
  const auto load = [&](int64_t from) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t pair = from + j * row_step + at.unit;
      gates[j] = at.has_row[j] ? __ldg(saved.gates_BSHK2 + pair / 2) : uint4{};
      grad_y[j] = at.has_row[j] ? load_word(x.grad_y_BSHK, pair) : 0u;
    }
  };
  const auto load_ratio = [&](uint32_t (&to)[2], int64_t from) {
#pragma unroll
    for (int j = 0; j < 2; ++j) to[j] = at.has_row[j] ? load_word(saved.ratio_BSHK, from + j * row_step + at.unit) : 0u;
  };
  // One thread per 128 bytes of a row: 4 lines of gates, 1 of ratios, 1 of gradients.
  const int line_row = threadIdx.x / 6, line = threadIdx.x % 6, line_bytes = line < 4 ? 8 : 2;
  const bool prefetches = line_row < kRows && int(blockIdx.y) * kRows + line_row < x.B;
  const char* ahead = line < 4    ? reinterpret_cast<const char*>(saved.gates_BSHK2) + 128 * line
                      : line == 4 ? reinterpret_cast<const char*>(saved.ratio_BSHK)
                                  : static_cast<const char*>(x.grad_y_BSHK);
  ahead += line_bytes * ((int64_t(blockIdx.y) * kRows + line_row) * row_step + (x.S - 1 - kPrefetchSteps) * token_step + int64_t(at.h) * K +
                         at.block * kUnits);

  const uint8_t* is_start = x.is_start_BS ? x.is_start_BS + int64_t(at.first_row) * x.S : nullptr;
  load(place);
  load_ratio(ratio, place);
  if (x.S > 1) load_ratio(ratio_before, place - token_step);
  const uint32_t matrix_row = shared_address_of(dp) + 2 * ((at.lane % 8) * kGradPitch + 8 * (at.lane / 8));
  // Where this lane's pair of units of an m-tile goes in the block that owns it.
  const uint32_t own_parts = shared_address_of(parts) + 4 * ((at.block * kRows + 2 * at.c) * kPartPitch + 2 * at.g);
  const auto send = [&](int tile, const float (&sums)[4]) {
    if (tile / 4 >= at.blocks) return;
    const uint32_t to = address_in_block(own_parts + 4 * 16 * (tile % 4), tile / 4);
    store_remote(to, sums[0], sums[2]);
    store_remote(to + 4 * kPartPitch, sums[1], sums[3]);
  };
  cluster_arrive();  // partial sums may be written from now on
  for (int t = x.S - 1; t >= 0; --t) {
    if (t > 1) load_ratio(ratio_two_before, place - 2 * token_step);
    bool starts[2] = {};
    if (is_start) {
      if (at.has_row[0]) starts[0] = is_start[t];
      if (at.has_row[1]) starts[1] = is_start[x.S + t];
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 share = unpack<T>(gates[j].x), slope = unpack<T>(gates[j].y), o = unpack<T>(gates[j].z);
      const float2 z = unpack<__half>(gates[j].w), from_y = unpack<T>(grad_y[j]);
      const float2 a = unpack<__half>(ratio[j]), before = unpack<__half>(ratio_before[j]);
      float grads[2][4];
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        Running& s = running[j][v];
        const Fraction part = decode_fraction(v ? share.y : share.x);
        advance_backward(s, (v ? from_y.y : from_y.x) + dy[j][v], part.x, v ? slope.y : slope.x, decode_fraction(v ? o.y : o.x),
                         v ? z.y : z.x, v ? a.y : a.x, v ? before.y : before.x, grads[v]);
        if (t == 0 && at.has_row[j]) {  // to the initial state, in its own frame
          const int64_t edge = (int64_t(at.first_row + j) * x.H + at.h) * K + at.unit + v;
          const float decay = saved.first_decay_BHK[edge];
          s.D *= decay;
          s.E *= decay;
          grads[v][1] = saved.first_slope_BHK[edge] * (x.initial_cell_BHK[edge] * s.D + x.initial_normalizer_BHK[edge] * s.E);
        } else {
          s.D *= part.complement;
          s.E *= part.complement;
        }
#pragma unroll
        for (int gate = 0; gate < 4; ++gate) bias_sum[gate][v] += grads[v][gate];
      }
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        const uint32_t word = pack<T>(grads[0][gate], grads[1][gate]);
        store_word(dp, (2 * at.c + j) * kGradPitch + gate * kUnits + at.local_unit, word);
        if (at.has_row[j]) store_word(x.grad_wx_BSHGK, 4 * (place + j * row_step) + gate * K + at.unit, word);
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      ratio[j] = ratio_before[j];
      ratio_before[j] = ratio_two_before[j];
    }
    if (t > 0) load(place - token_step);
    if (prefetches && t >= kPrefetchSteps) prefetch_to_l2(ahead);
    ahead -= line_bytes * token_step;
    __syncthreads();
    uint32_t b[8][4];
    float acc[kRegisterRowTiles][2][4] = {};
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      load_matrices(b[k], matrix_row + 64 * k);
#pragma unroll
      for (int i = 0; i < kRegisterRowTiles; ++i) {
        multiply<T>(acc[i][0], r[i][2 * k], b[k][0], b[k][1]);
        multiply<T>(acc[i][1], r[i][2 * k + 1], b[k][2], b[k][3]);
      }
    }
    cluster_wait();  // all have read the sums of the step before
#pragma unroll
    for (int i = 0; i < kRegisterRowTiles; ++i) {
      const float sums[4] = {acc[i][0][0] + acc[i][1][0], acc[i][0][1] + acc[i][1][1], acc[i][0][2] + acc[i][1][2],
                             acc[i][0][3] + acc[i][1][3]};
      send(at.warp + 4 * i, sums);
    }
    for (int tile = at.warp + 4 * kRegisterRowTiles; tile < tiles; tile += 4) {
      const uint4* fragments = rest + (tile - 4 * kRegisterRowTiles) * 16 * 32;
      float part[4][4] = {};
#pragma unroll
      for (int k = 0; k < 8; ++k) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint4 word = fragments[(2 * k + i) * 32];
          const uint32_t a[4] = {word.x, word.y, word.z, word.w};
          multiply<T>(part[2 * (k % 2) + i], a, b[k][2 * i], b[k][2 * i + 1]);
        }
      }
      const float sums[4] = {(part[0][0] + part[1][0]) + (part[2][0] + part[3][0]), (part[0][1] + part[1][1]) + (part[2][1] + part[3][1]),
                             (part[0][2] + part[1][2]) + (part[2][2] + part[3][2]), (part[0][3] + part[1][3]) + (part[2][3] + part[3][3])};
      send(tile, sums);
    }
    cluster_arrive();
    cluster_wait();  // all partial sums are here
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float2 sum = {};
      for (int block = 0; block < at.blocks; ++block) {
        const float2 part = *reinterpret_cast<const float2*>(parts + (block * kRows + 2 * at.c + j) * kPartPitch + at.local_unit);
        sum.x += part.x;
        sum.y += part.y;
      }
      dy[j][0] = starts[j] ? 0.0f : sum.x;
      dy[j][1] = starts[j] ? 0.0f : sum.y;
    }
    cluster_arrive();
    place -= token_step;
  }
  cluster_wait();
  store_first_gradients(x, at, K, dy, running, bias_sum);
}

template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), const Arguments& x, size_t bytes, cudaStream_t stream) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) return error;
  const int blocks = num_blocks(x.K);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = blocks;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(x.H * blocks, slstm_num_tiles(x.B));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  error = cudaLaunchKernelEx(&config, kernel, x);
  return error != cudaSuccess ? error : cudaGetLastError();
}

}  // namespace

bool slstm_fits_cluster(int K) {
  int device = 0, has_clusters = 0, shared_bytes = 0;
  cudaFuncAttributes code{};
  return cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, device) == cudaSuccess &&
         has_clusters && cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess &&
         std::max(forward_shared_bytes(K), backward_shared_bytes(K)) <= size_t(shared_bytes) &&
         cudaFuncGetAttributes(&code, forward_kernel<__half, false>) == cudaSuccess && code.ptxVersion >= 90;
}

cudaError_t slstm_forward_cluster(const SlstmForward& x, cudaStream_t stream) {
  const size_t bytes = forward_shared_bytes(x.K);
  if (x.type == Type::bfloat16)
    return launch(x.saved ? forward_kernel<__nv_bfloat16, true> : forward_kernel<__nv_bfloat16, false>, x, bytes, stream);
  return launch(x.saved ? forward_kernel<__half, true> : forward_kernel<__half, false>, x, bytes, stream);
}

cudaError_t slstm_backward_cluster(const SlstmBackward& x, cudaStream_t stream) {
  const size_t bytes = backward_shared_bytes(x.K);
  return x.type == Type::bfloat16 ? launch(backward_kernel<__nv_bfloat16>, x, bytes, stream)
                                  : launch(backward_kernel<__half>, x, bytes, stream);
}

}  // namespace distil_xlstm::kernels::cuda
