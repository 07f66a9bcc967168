#include "kernels/cuda/swiglu_product.h"

#include <algorithm>
#include <atomic>

#include "kernels/cuda/sm90.cuh"
#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

// A block's tile: kRows rows of x against kOutputs gate rows and the same up rows. Two warpgroups multiply, 64 rows each; a third one
// loads. The blocks of a cluster have the same outputs and share the weight's loads.
constexpr int kCluster = 2;
constexpr int kRows = 128, kOutputs = 128, kColumns = 2 * kOutputs;
constexpr int kThreads = 3 * 128;
constexpr int kConsumerWarps = 8;
constexpr int kPanelBytes = 16 * 128;  // a warp's 16 rows of 64 outputs, in the order of the 128-byte swizzle

template <int kBlockK, int kStages>
struct Layout {
  static constexpr int kRowBytes = kBlockK * 2;
  static constexpr int kXBytes = kRows * kRowBytes, kWeightBytes = kColumns * kRowBytes;
  static constexpr int kStageBytes = kXBytes + kWeightBytes;
  static constexpr int kOut = kStages * kStageBytes;
  static constexpr int kBarriers = kOut + kConsumerWarps * 2 * kPanelBytes;
  static constexpr int kBytes = kBarriers + 2 * kStages * 8 + 1024;  // the swizzle wants 1024-byte alignment
};

struct Work {
  int64_t M;
  int I;
  int row_tiles, column_tiles;  // in tiles of a cluster
  int k_steps;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr int kGroup = 16;  // row tiles of a cluster that are walked through together

struct Tile {
  int row, column;
};
// Column by column within a group of rows: what runs at a time reads few rows of both operands, and they stay in L2.
__device__ inline Tile tile_at(const Work& work, int index) {
  const int whole = kGroup * work.column_tiles, first = index / whole * kGroup;
  const int height = min(kGroup, work.row_tiles - first), within = index % whole;
  return {first + within % height, within / height};
}

// silu(gate) * up. Two share a reciprocal, since special functions are what takes the time here. The exponential stops at 2^60, so that
// their product stays finite: from there on, gate below -41, the result is gate 2^-60 up instead of less.
template <typename T>
__device__ inline uint32_t silu_times(float gate0, float gate1, float up0, float up1) {
  float grown0, grown1, share;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(grown0) : "f"(fminf(gate0 * -1.4426950408889634f, 60.0f)));
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(grown1) : "f"(fminf(gate1 * -1.4426950408889634f, 60.0f)));
  grown0 += 1.0f, grown1 += 1.0f;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(share) : "f"(grown0 * grown1));
  return pack_pair(gate0 * up0 * (grown1 * share), gate1 * up1 * (grown0 * share), T{});
}
#endif

template <typename T, int kBlockK, int kStages>
__global__ void __launch_bounds__(kThreads, 1)
    swiglu_product_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap weight_map,
                          const __grid_constant__ CUtensorMap out_map, const __grid_constant__ Work work) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace sm90;
  using L = Layout<kBlockK, kStages>;
  extern __shared__ char raw[];
  const uint32_t base = (shared_address(raw) + 1023) & ~1023u;
  const auto full = [&](int stage) { return base + L::kBarriers + uint32_t(stage) * 8; };
  const auto empty = [&](int stage) { return base + L::kBarriers + uint32_t(kStages + stage) * 8; };

  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, warpgroup = warp / 4;
  const auto rank = int(cluster_rank());
  const int tiles = work.row_tiles * work.column_tiles;
  const int first_tile = int(blockIdx.x) / kCluster, num_clusters = int(gridDim.x) / kCluster;

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), kCluster * kConsumerWarps);  // of all blocks: what one block loads lands in all
    }
    barrier_init_fence();
  }
  cluster_sync();

  int stage = 0;
  uint32_t parity = 0;
  const auto advance = [&] {
    if (++stage == kStages) stage = 0, parity ^= 1;
  };

  if (warpgroup == 0) {
    registers_down<40>();
    if (threadIdx.x == 0) {
      prefetch_map(&x_map);
      prefetch_map(&weight_map);
      prefetch_map(&out_map);
      constexpr int kShare = kOutputs / kCluster;  // outputs whose weight rows this block loads for all
      constexpr auto kAll = uint16_t((1 << kCluster) - 1);
      for (int index = first_tile; index < tiles; index += num_clusters) {
        const Tile tile = tile_at(work, index);
        const int row = (tile.row * kCluster + rank) * kRows, block = (tile.column * kOutputs + rank * kShare) / 8;
        for (int k = 0; k < work.k_steps; ++k, advance()) {
          const uint32_t x_to = base + uint32_t(stage * L::kStageBytes),
                         weight_to = x_to + L::kXBytes + uint32_t(rank * 2 * kShare * L::kRowBytes);
          barrier_wait(empty(stage), parity ^ 1);
          barrier_arrive_expecting(full(stage), L::kStageBytes);
          load_2d(x_to, &x_map, full(stage), k * kBlockK, row);
          load_4d_to_all(weight_to, &weight_map, full(stage), k * kBlockK, 0, 0, block, kAll);
        }
      }
    }
  } else {
    registers_up<232>();
    const int consumer = warpgroup - 1;
    float sums[128];
    const auto release = [&](int of) {
      if (lane < kCluster) barrier_arrive_at(empty(of), uint32_t(lane));
    };
    const uint32_t panels = base + L::kOut + uint32_t((warp - 4) * 2 * kPanelBytes);
    // stmatrix: lanes 0-7 and 8-15 give the rows of a block of 8 outputs, 16-31 those of the next.
    const uint32_t panel_row = panels + uint32_t(lane % 16) * 128;
    const int chunk = lane / 16, swizzle = lane % 8;

    for (int index = first_tile; index < tiles; index += num_clusters) {
      const Tile tile = tile_at(work, index);
      pin(sums);
      int previous = 0;
      for (int k = 0; k < work.k_steps; ++k) {
        const uint32_t x_from = base + uint32_t(stage * L::kStageBytes), weight_from = x_from + L::kXBytes;
        const uint64_t a = operand<L::kRowBytes>(x_from + uint32_t(consumer * 64 * L::kRowBytes)), b = operand<L::kRowBytes>(weight_from);
        barrier_wait(full(stage), parity);
        product_begin();
#pragma unroll
        for (int i = 0; i < kBlockK / 16; ++i) product_64x256x16(sums, a + uint64_t(2 * i), b + uint64_t(2 * i), k > 0 || i > 0, T{});
        product_commit();
        product_wait<1>();
        if (k > 0) release(previous);
        previous = stage;
        advance();
      }
      product_wait<0>();
      release(previous);
      pin(sums);

      // Blocks of 8 columns alternate: gate in sums[8 b .. 8 b + 3], up of the same outputs in the next four.
      if (lane == 0) store_wait();
      __syncwarp();
#pragma unroll
      for (int pair = 0; pair < 8; ++pair) {
        uint32_t bits[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* gate = sums + 8 * (2 * pair + i / 2) + 2 * (i % 2);
          bits[i] = silu_times<T>(gate[0], gate[1], gate[4], gate[5]);
        }
        store_matrices(panel_row + uint32_t(pair / 4 * kPanelBytes) + uint32_t(((pair % 4 * 2 + chunk) ^ swizzle) * 16), bits[0], bits[1],
                       bits[2], bits[3]);
      }
      fence_before_copy();
      __syncwarp();
      if (lane == 0) {
        const int row = (tile.row * kCluster + rank) * kRows + (warp - 4) * 16, column = tile.column * kOutputs;
        if (row < work.M) {
          store_2d(&out_map, panels, column, row);
          if (column + 64 < work.I) store_2d(&out_map, panels + kPanelBytes, column + 64, row);
        }
        store_commit();
      }
    }
    if (lane == 0) store_wait();
  }
  __syncwarp();
  cluster_sync();  // no block leaves while others may still signal its barriers
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
}
Encode encode_function() {
  static const Encode encode = find_encode();
  return encode;
}

template <int kRank>
bool encode_map(CUtensorMap* map, Type type, const void* data, const cuuint64_t (&sizes)[kRank], const cuuint64_t (&strides)[kRank - 1],
                const cuuint32_t (&box)[kRank], CUtensorMapSwizzle swizzle) {
  cuuint32_t steps[kRank];
  std::fill(steps, steps + kRank, 1u);
  return encode_function()(map, type == Type::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, kRank,
                           const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

constexpr int kMaxDevices = 64;

// How many clusters run at a time, or an error; asked once a device.
template <typename T, int kBlockK, int kStages>
cudaError_t prepare(int device, cudaLaunchConfig_t config, int& clusters) {
  static std::atomic<int> known[kMaxDevices];
  if (device < kMaxDevices) clusters = known[device].load(std::memory_order_acquire);
  if (clusters > 0) return cudaSuccess;
  const auto kernel = swiglu_product_kernel<T, kBlockK, kStages>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(config.dynamicSmemBytes));
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  if (error == cudaSuccess && clusters < 1) error = cudaErrorNotSupported;
  if (error == cudaSuccess && device < kMaxDevices) known[device].store(clusters, std::memory_order_release);
  return error;
}

template <typename T, int kBlockK, int kStages>
cudaError_t launch(const SwigluProduct& x, cudaStream_t stream) {
  const auto M = cuuint64_t(x.M), I = cuuint64_t(x.I), K = cuuint64_t(x.K);
  constexpr auto kInputSwizzle = kBlockK == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  CUtensorMap x_map, weight_map, out_map;
  // The weight as [I / 8][gate, up][8][K]: one copy brings 8 gate rows and the 8 up rows of the same outputs by turns. The strides do not
  // grow from dimension to dimension, which drivers do not ask for; one that does would make this NotSupported.
  if (!encode_map<2>(&x_map, x.type, x.x_MK, {K, M}, {K * 2}, {kBlockK, kRows}, kInputSwizzle) ||
      !encode_map<4>(&weight_map, x.type, x.weight_2IK, {K, 8, 2, I / 8}, {K * 2, I * K * 2, K * 16},
                     {kBlockK, 8, 2, kOutputs / 8 / kCluster}, kInputSwizzle) ||
      !encode_map<2>(&out_map, x.type, x.out_MI, {I, M}, {I * 2}, {64, 16}, CU_TENSOR_MAP_SWIZZLE_128B))
    return cudaErrorNotSupported;

  Work work{};
  work.M = x.M, work.I = x.I;
  work.row_tiles = int((x.M + kRows * kCluster - 1) / (kRows * kCluster)), work.column_tiles = (x.I + kOutputs - 1) / kOutputs;
  work.k_steps = (x.K + kBlockK - 1) / kBlockK;

  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = kCluster, cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kCluster), config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = Layout<kBlockK, kStages>::kBytes;
  config.stream = stream;
  config.attrs = &cluster, config.numAttrs = 1;
  int device = 0, clusters = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = prepare<T, kBlockK, kStages>(device, config, clusters);
  if (error != cudaSuccess) return error;
  config.gridDim = dim3(unsigned(kCluster * std::min(clusters, work.row_tiles * work.column_tiles)));
  return cudaLaunchKernelEx(&config, swiglu_product_kernel<T, kBlockK, kStages>, x_map, weight_map, out_map, work);
}

bool find_out_whether_device_runs_it(int device) {
  int major = 0, minor = 0;
  cudaFuncAttributes code{};
  return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 && minor == 0 &&
         cudaFuncGetAttributes(&code, swiglu_product_kernel<__nv_bfloat16, 64, 4>) == cudaSuccess &&
         code.numRegs > 100 &&  // not the empty body that a build for other targets has
         encode_function() != nullptr;
}
bool device_runs_it() {
  static std::atomic<int> known[kMaxDevices];  // 1 no, 2 yes
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return false;
  int answer = known[device].load(std::memory_order_relaxed);
  if (answer == 0) {
    answer = find_out_whether_device_runs_it(device) ? 2 : 1;
    if (answer == 1) (void)cudaGetLastError();  // of a question: the next launch's check shall not find it
    known[device].store(answer, std::memory_order_relaxed);
  }
  return answer == 2;
}

// Below, smaller steps: a tile starts and ends sooner.
constexpr int kShortK = 1024;

template <typename T>
cudaError_t launch_for(const SwigluProduct& x, cudaStream_t stream) {
  return x.K < kShortK ? launch<T, 32, 8>(x, stream) : launch<T, 64, 4>(x, stream);
}

}  // namespace

bool swiglu_product_supports(const SwigluProduct& x) {
  if (x.type == Type::float32 || x.M < 0 || x.I < 8 || x.K < 8 || x.I % 8 != 0 || x.K % 8 != 0) return false;
  if (x.M > int64_t(1) << 30 || (x.M / kRows + 1) * (x.I / kOutputs + 1) > int64_t(1) << 30) return false;  // tiles are counted in 32 bits
  return are_aligned({x.x_MK, x.weight_2IK, x.out_MI}) && device_runs_it();
}

cudaError_t swiglu_product(const SwigluProduct& x, cudaStream_t stream) {
  if (!swiglu_product_supports(x)) return cudaErrorNotSupported;
  if (x.M == 0) return cudaSuccess;
  const cudaError_t error = x.type == Type::float16 ? launch_for<__half>(x, stream) : launch_for<__nv_bfloat16>(x, stream);
  if (error != cudaSuccess) (void)cudaGetLastError();  // the caller has it: the next launch's check shall not find it
  return error;
}

}  // namespace distil_xlstm::kernels::cuda
