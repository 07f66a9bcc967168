#include "kernels/cuda/layer_norm.h"

#include <algorithm>

#include "kernels/cuda/vector.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kHeldValues = 32;  // that a lane keeps in registers between the passes over its row

// Over kLanes neighbouring threads: a warp or a part of one, all of whose threads must come here, or the whole block.
template <int kLanes>
__device__ inline float sum_lanes(float x) {
  static_assert(kLanes <= 32 || kLanes == kThreads);
#pragma unroll
  for (int offset = (kLanes < 32 ? kLanes : 32) / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  if constexpr (kLanes == kThreads) {
    __shared__ float partial[kThreads / 32];
    __syncthreads();  // the sum before this one has been read
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
#pragma unroll
    for (int i = 0; i < kThreads / 32; ++i) x += partial[i];
  }
  return x;
}

// Over the kLanes neighbouring threads of a team. All threads of the block must come here, with another `turn` (0, 1) each time: what one
// sum has left in memory is then not overwritten before all have read it.
template <int kBlockThreads, int kLanes>
__device__ inline float2 sum_team(float2 x, int turn) {
#pragma unroll
  for (int offset = (kLanes < 32 ? kLanes : 32) / 2; offset > 0; offset /= 2) {
    x.x += __shfl_xor_sync(0xffffffffu, x.x, offset);
    x.y += __shfl_xor_sync(0xffffffffu, x.y, offset);
  }
  if constexpr (kLanes > 32) {
    __shared__ float2 partial[2][kBlockThreads / 32];
    if (threadIdx.x % 32 == 0) partial[turn][threadIdx.x / 32] = x;
    __syncthreads();
    x = {};
#pragma unroll
    for (int i = 0; i < kLanes / 32; ++i) {
      const float2 part = partial[turn][threadIdx.x / kLanes * (kLanes / 32) + i];
      x.x += part.x;
      x.y += part.y;
    }
  }
  return x;
}

// What the weight is added to.
__device__ inline float offset(const LayerNorm& x) {
  return x.is_rms ? 0.0f : 1.0f;
}

// What kLanes threads work on: one group of one row. Where none is left the width is 0, and only the sums go on.
struct Place {
  int64_t group;  // of all N * G
  int lane, width;
};
template <int kLanes>
__device__ inline Place place(const LayerNorm& x) {
  const int64_t group = int64_t(blockIdx.x) * (kThreads / kLanes) + threadIdx.x / kLanes;
  return {group, int(threadIdx.x) % kLanes, group < x.N * x.G ? x.K : 0};
}

// T is the type of x, Y that of y.
template <typename T, typename Y, int kLanes>
__global__ void __launch_bounds__(kThreads) forward_vectors(const __grid_constant__ LayerNorm x) {
  constexpr int W = kVectorSize<T>, kHeld = kHeldValues / W;
  const Place at = place<kLanes>(x);
  const T* in = static_cast<const T*>(x.x_NGK) + at.group * x.K;
  Y* out = static_cast<Y*>(x.y_NGK) + at.group * x.K;
  const float* weight = x.weight_GK + at.group % x.G * x.K;
  float values[kHeld][W], sum = 0.0f, squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int k = (at.lane + i * kLanes) * W;
    if (k >= at.width) break;
    load_values(values[i], in + k);
    if (x.added_NGK) {
      float added[W];
      load_values(added, static_cast<const Y*>(x.added_NGK) + at.group * x.K + k);
#pragma unroll
      for (int j = 0; j < W; ++j) values[i][j] = to_float(from_float<T>(values[i][j] + added[j]));  // what backward reads
      store_values(static_cast<T*>(x.sum_NGK) + at.group * x.K + k, values[i]);
    }
#pragma unroll
    for (int j = 0; j < W; ++j) sum += values[i][j];
  }
  const float mean = x.is_rms ? 0.0f : sum_lanes<kLanes>(sum) / x.K;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if ((at.lane + i * kLanes) * W >= at.width) break;
#pragma unroll
    for (int j = 0; j < W; ++j) {
      values[i][j] -= mean;
      squares += values[i][j] * values[i][j];
    }
  }
  const float rstd = rsqrtf(sum_lanes<kLanes>(squares) / x.K + x.eps);
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int k = (at.lane + i * kLanes) * W;
    if (k >= at.width) break;
    float factor[W];
    load_values(factor, weight + k);
#pragma unroll
    for (int j = 0; j < W; ++j) values[i][j] *= rstd * (offset(x) + factor[j]);
    store_values(out + k, values[i]);
  }
  if (at.lane == 0 && at.width > 0) {
    x.mean_NG[at.group] = mean;
    x.rstd_NG[at.group] = rstd;
  }
}

// How the threads of a backward block share its rows: teams of kLanes threads, one a group and row. A team keeps its group for all its
// rows, so that the weight's gradient stays in registers.
struct TeamGrid {
  int rows;    // of a block
  int groups;  // of a block; blockIdx.y tells which
  int slots;   // rows that are under way together
};

// Both gradients, each tensor read once: those of the inputs, row by row, and the weight's, one partial sum a block. The next row is asked
// for before this one's sums are made. grid: (blocks of rows, parts of the groups).
template <typename T, typename Y, int kBlockThreads, int kLanes, int kHeld>
__global__ void __launch_bounds__(kBlockThreads, 1) backward_vectors(const __grid_constant__ LayerNorm x, TeamGrid grid) {
  constexpr int W = kVectorSize<T>;
  const int lane = int(threadIdx.x) % kLanes, team = int(threadIdx.x) / kLanes, slot = team / grid.groups;
  const int group = int(blockIdx.y) * grid.groups + team % grid.groups;
  const bool has_group = slot < grid.slots && group < x.G;
  const int width = has_group ? x.K : 0;  // 0: only the sums go on
  const int64_t first = int64_t(blockIdx.x) * grid.rows, last = min(first + grid.rows, x.N);

  float factor[kHeld][W], weight_sums[kHeld][W];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int k = (lane + i * kLanes) * W;
#pragma unroll
    for (int j = 0; j < W; ++j) factor[i][j] = weight_sums[i][j] = 0.0f;
    if (k >= width) continue;
    load_values(factor[i], x.weight_GK + int64_t(group) * x.K + k);
#pragma unroll
    for (int j = 0; j < W; ++j) factor[i][j] += offset(x);
  }

  Packed<T, W> next_in[kHeld];
  Packed<Y, W> next_dy[kHeld];
  float next_mean = 0.0f, next_rstd = 0.0f;
  const auto ask = [&](int64_t row) {
    if (row >= last || width == 0) return;
    const int64_t at = row * x.G + group;
    next_mean = __ldg(x.mean_NG + at);
    next_rstd = __ldg(x.rstd_NG + at);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int k = (lane + i * kLanes) * W;
      if (k >= width) break;
      next_in[i].load(static_cast<const T*>(x.x_NGK) + at * x.K + k);
      next_dy[i].load(static_cast<const Y*>(x.grad_y_NGK) + at * x.K + k);
    }
  };

  ask(first + slot);
  const int steps = (grid.rows + grid.slots - 1) / grid.slots;  // the same for all: they meet at barriers
  for (int step = 0; step < steps; ++step) {
    const int64_t row = first + int64_t(step) * grid.slots + slot, at = row * x.G + group;
    const int row_width = row < last ? width : 0;
    const float mean = next_mean, rstd = next_rstd;
    float normalized[kHeld][W], grad[kHeld][W];
    Packed<T, W> residual[kHeld];
    float2 sums{};
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int k = (lane + i * kLanes) * W;
      if (k >= row_width) break;
      next_in[i].unpack_into(normalized[i]);
      next_dy[i].unpack_into(grad[i]);
      if (x.grad_residual_NGK) residual[i].load(static_cast<const T*>(x.grad_residual_NGK) + at * x.K + k);
    }
    ask(row + grid.slots);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if ((lane + i * kLanes) * W >= row_width) break;
#pragma unroll
      for (int j = 0; j < W; ++j) {
        normalized[i][j] = (normalized[i][j] - mean) * rstd;
        weight_sums[i][j] += grad[i][j] * normalized[i][j];
        grad[i][j] *= factor[i][j];
        sums.x += grad[i][j];
        sums.y += grad[i][j] * normalized[i][j];
      }
    }
    sums = sum_team<kBlockThreads, kLanes>(sums, step % 2);
    const float average = x.is_rms ? 0.0f : sums.x / x.K, average_normalized = sums.y / x.K;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int k = (lane + i * kLanes) * W;
      if (k >= row_width) break;
      float others[W] = {};
      if (x.grad_residual_NGK) residual[i].unpack_into(others);
#pragma unroll
      for (int j = 0; j < W; ++j) grad[i][j] = others[j] + rstd * (grad[i][j] - average - normalized[i][j] * average_normalized);
      store_values(static_cast<T*>(x.grad_x_NGK) + at * x.K + k, grad[i]);
    }
  }

  // The slots' sums, halved until one is left.
  __shared__ float handed[kHeld * W][kBlockThreads / 2];
  const int slot_threads = grid.groups * kLanes, within = int(threadIdx.x) - slot * slot_threads;
  for (int slots = grid.slots; slots > 1;) {
    const int half = (slots + 1) / 2;
    __syncthreads();
    if (slot >= half && slot < slots) {
#pragma unroll
      for (int v = 0; v < kHeld * W; ++v) handed[v][(slot - half) * slot_threads + within] = weight_sums[v / W][v % W];
    }
    __syncthreads();
    if (slot < slots - half) {
#pragma unroll
      for (int v = 0; v < kHeld * W; ++v) weight_sums[v / W][v % W] += handed[v][slot * slot_threads + within];
    }
    slots = half;
  }
  if (slot != 0) return;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int k = (lane + i * kLanes) * W;
    if (k >= width) break;
    store_values(x.grad_weight_PGK + (int64_t(blockIdx.x) * x.G + group) * x.K + k, weight_sums[i]);
  }
}

// Rows of any width: a warp per row and group, value by value.
constexpr int kWarps = kThreads / 32;

template <typename T, typename Y>
__global__ void forward_values(const __grid_constant__ LayerNorm x) {
  const int64_t group = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (group >= x.N * x.G) return;
  const int lane = int(threadIdx.x) % 32;
  const T* in = static_cast<const T*>(x.x_NGK) + group * x.K;
  Y* out = static_cast<Y*>(x.y_NGK) + group * x.K;
  const float* weight = x.weight_GK + group % x.G * x.K;
  float sum = 0.0f, squares = 0.0f;
  if (x.added_NGK) {
    const Y* added = static_cast<const Y*>(x.added_NGK) + group * x.K;
    T* total = static_cast<T*>(x.sum_NGK) + group * x.K;
    for (int i = lane; i < x.K; i += 32) total[i] = from_float<T>(to_float(in[i]) + to_float(added[i]));
    in = total;  // each lane reads what it wrote
  }
  for (int i = lane; i < x.K; i += 32) sum += to_float(in[i]);
  const float mean = x.is_rms ? 0.0f : sum_lanes<32>(sum) / x.K;
  for (int i = lane; i < x.K; i += 32) {
    const float centered = to_float(in[i]) - mean;
    squares += centered * centered;
  }
  const float rstd = rsqrtf(sum_lanes<32>(squares) / x.K + x.eps);
  for (int i = lane; i < x.K; i += 32) out[i] = from_float<Y>((to_float(in[i]) - mean) * rstd * (offset(x) + weight[i]));
  if (lane == 0) {
    x.mean_NG[group] = mean;
    x.rstd_NG[group] = rstd;
  }
}

template <typename T, typename Y>
__global__ void input_values(const __grid_constant__ LayerNorm x) {
  const int64_t group = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (group >= x.N * x.G) return;
  const int lane = int(threadIdx.x) % 32;
  const T* in = static_cast<const T*>(x.x_NGK) + group * x.K;
  const Y* dy = static_cast<const Y*>(x.grad_y_NGK) + group * x.K;
  T* out = static_cast<T*>(x.grad_x_NGK) + group * x.K;
  const T* residual = x.grad_residual_NGK ? static_cast<const T*>(x.grad_residual_NGK) + group * x.K : nullptr;
  const float *weight = x.weight_GK + group % x.G * x.K, mean = x.mean_NG[group], rstd = x.rstd_NG[group];
  float sum = 0.0f, sum_normalized = 0.0f;
  for (int i = lane; i < x.K; i += 32) {
    const float grad = to_float(dy[i]) * (offset(x) + weight[i]);
    sum += grad;
    sum_normalized += grad * (to_float(in[i]) - mean) * rstd;
  }
  const float average = x.is_rms ? 0.0f : sum_lanes<32>(sum) / x.K, average_normalized = sum_lanes<32>(sum_normalized) / x.K;
  for (int i = lane; i < x.K; i += 32) {
    const float normalized = (to_float(in[i]) - mean) * rstd;
    const float grad = rstd * (to_float(dy[i]) * (offset(x) + weight[i]) - average - normalized * average_normalized);
    out[i] = from_float<T>(grad + (residual ? to_float(residual[i]) : 0.0f));
  }
}

// grid: (features, blocks of rows).
template <typename T, typename Y>
__global__ void weight_kernel(const __grid_constant__ LayerNorm x, int rows) {
  const int width = x.G * x.K, feature = int(blockIdx.x * kThreads + threadIdx.x);
  if (feature >= width) return;
  const int64_t first = int64_t(blockIdx.y) * rows, last = min(first + rows, x.N);
  float sum = 0.0f;
#pragma unroll 4
  for (int64_t row = first; row < last; ++row) {
    const int64_t group = row * x.G + feature / x.K, at = row * width + feature;
    sum += to_float(static_cast<const Y*>(x.grad_y_NGK)[at]) * (to_float(static_cast<const T*>(x.x_NGK)[at]) - x.mean_NG[group]) *
           x.rstd_NG[group];
  }
  x.grad_weight_PGK[int64_t(blockIdx.y) * width + feature] = sum;
}

unsigned blocks(int64_t count, int64_t size) {
  return unsigned((count + size - 1) / size);
}

template <typename T>
bool has_vectors(const LayerNorm& x) {
  return x.K % kVectorSize<T> == 0 && are_aligned({x.x_NGK, x.weight_GK, x.y_NGK, x.added_NGK, x.sum_NGK, x.grad_y_NGK, x.grad_residual_NGK,
                                                   x.grad_x_NGK, x.grad_weight_PGK});
}

// f(std::integral_constant<int, lanes>{}): threads that hold a group's values together. 0: it goes value by value.
template <typename T, typename F>
void with_lanes(const LayerNorm& x, const F& f) {
  if (!has_vectors<T>(x) || x.K > kThreads * kHeldValues) return f(std::integral_constant<int, 0>{});
  if (x.K <= 16 * kHeldValues) return f(std::integral_constant<int, 16>{});
  if (x.K <= 32 * kHeldValues) return f(std::integral_constant<int, 32>{});
  f(std::integral_constant<int, kThreads>{});
}

template <typename T, typename Y, int kBlockThreads, int kLanes, int kHeld>
void launch_backward(const LayerNorm& x, cudaStream_t stream) {
  constexpr int kTeams = kBlockThreads / kLanes;
  const int parts = (x.G + kTeams - 1) / kTeams, rows = norm_block_rows(x.N);
  TeamGrid grid{rows, (x.G + parts - 1) / parts, 0};
  grid.slots = std::min(kTeams / grid.groups, rows);
  const unsigned threads = blocks(grid.groups * grid.slots * kLanes, 32) * 32;
  backward_vectors<T, Y, kBlockThreads, kLanes, kHeld><<<dim3(blocks(x.N, rows), parts), threads, 0, stream>>>(x, grid);
}

// The fewest threads a group whose registers hold its values. False: they do not, or the accesses do not fit.
template <typename T, typename Y>
bool launch_backward_vectors(const LayerNorm& x, cudaStream_t stream) {
  constexpr int W = kVectorSize<T>, kHeld = sizeof(T) == 4 ? 3 : 2, kBlockThreads = 512;
  const int vectors = x.K / W;
  if (!has_vectors<T>(x) || vectors > 128 * kHeldValues / W) return false;
  if (vectors <= 8 * kHeld) {
    launch_backward<T, Y, kBlockThreads, 8, kHeld>(x, stream);
  } else if (vectors <= 16 * kHeld) {
    launch_backward<T, Y, kBlockThreads, 16, kHeld>(x, stream);
  } else if (vectors <= 32 * kHeld) {
    launch_backward<T, Y, kBlockThreads, 32, kHeld>(x, stream);
  } else if (vectors <= 64 * kHeld) {
    launch_backward<T, Y, kBlockThreads, 64, kHeld>(x, stream);
  } else if (vectors <= 128 * kHeld) {
    launch_backward<T, Y, kBlockThreads, 128, kHeld>(x, stream);
  } else {
    launch_backward<T, Y, kBlockThreads / 2, 128, kHeldValues / W>(x, stream);
  }
  return true;
}

// f(T{}, Y{}) with the C++ types of x and y.
template <typename F>
cudaError_t with_types(const LayerNorm& x, const F& f) {
  return with_type(x.type, [&](auto zero) {
    if (x.y_type == x.type) return f(zero, zero);
    if constexpr (std::is_same_v<decltype(zero), float>) {
      if (x.y_type == Type::bfloat16) return f(zero, __nv_bfloat16{});
      if (x.y_type == Type::float16) return f(zero, __half{});
    }
    return cudaErrorInvalidValue;
  });
}

}  // namespace

cudaError_t layer_norm_forward(const LayerNorm& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  return with_types(x, [&](auto t, auto y) {
    using T = decltype(t);
    using Y = decltype(y);
    with_lanes<T>(x, [&](auto lanes) {
      constexpr int kLanes = decltype(lanes)::value;
      if constexpr (kLanes == 0) {
        forward_values<T, Y><<<blocks(x.N * x.G, kWarps), kThreads, 0, stream>>>(x);
      } else {
        forward_vectors<T, Y, kLanes><<<blocks(x.N * x.G, kThreads / kLanes), kThreads, 0, stream>>>(x);
      }
    });
    return cudaGetLastError();
  });
}

int norm_block_rows(int64_t N) {
  constexpr int64_t kBlocks = 128;  // about the multiprocessors of the GPUs there are: one large block on each
  return int(std::clamp<int64_t>((N + kBlocks - 1) / kBlocks, 32, 128));
}

cudaError_t layer_norm_backward(const LayerNorm& x, cudaStream_t stream) {
  if (x.N == 0) return cudaSuccess;
  return with_types(x, [&](auto t, auto y) {
    using T = decltype(t);
    using Y = decltype(y);
    if (launch_backward_vectors<T, Y>(x, stream)) return cudaGetLastError();
    input_values<T, Y><<<blocks(x.N * x.G, kWarps), kThreads, 0, stream>>>(x);
    const int rows = norm_block_rows(x.N);
    weight_kernel<T, Y><<<dim3(blocks(int64_t(x.G) * x.K, kThreads), blocks(x.N, rows)), kThreads, 0, stream>>>(x, rows);
    return cudaGetLastError();
  });
}

}  // namespace distil_xlstm::kernels::cuda
