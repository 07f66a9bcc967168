#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/slstm_mma.cuh"
#include "kernels/cuda/slstm_mma.h"
#include "kernels/cuda/slstm_unit.cuh"

namespace distil_xlstm::kernels::cuda {
namespace {

// Rows of `hidden` in shared memory are padded to 4 floats and read four at a time.
__host__ __device__ inline int padded(int K) {
  return (K + 3) / 4 * 4;
}

// acc[b] += sum over k < count of matrix[k * step] * vectors[b * stride + k]; vectors 16-byte aligned and 0 from count to its padding.
template <typename T, int ROWS>
__device__ inline void accumulate(float (&acc)[ROWS], const T* matrix, int step, const float* vectors, int stride, int count) {
  int k = 0;
#pragma unroll 4
  for (; k + 4 <= count; k += 4) {
    const float w0 = to_float(matrix[(k + 0) * step]), w1 = to_float(matrix[(k + 1) * step]);
    const float w2 = to_float(matrix[(k + 2) * step]), w3 = to_float(matrix[(k + 3) * step]);
#pragma unroll
    for (int b = 0; b < ROWS; ++b) {
      const float4 v = *reinterpret_cast<const float4*>(vectors + b * stride + k);
      acc[b] += w0 * v.x + w1 * v.y + w2 * v.z + w3 * v.w;
    }
  }
  for (; k < count; ++k) {
    const float w = to_float(matrix[k * step]);
#pragma unroll
    for (int b = 0; b < ROWS; ++b) acc[b] += w * vectors[b * stride + k];
  }
}

// Shared memory: hidden [ROWS][padded K], pre [ROWS][4 K], and R [K][4 K] when it fits. One thread has one unit of one row, so that its
// states stay in registers; the product is spread over all threads by output column.
template <typename T, int ROWS, bool kMatrixInShared>
__global__ void __launch_bounds__(1024, 1) forward_kernel(SlstmForward x) {
  extern __shared__ float4 shared[];
  const int K = x.K, Kp = padded(K), columns = 4 * K;
  float* hidden = reinterpret_cast<float*>(shared);
  float* pre = hidden + ROWS * Kp;
  const int h = blockIdx.x, first = blockIdx.y * ROWS;
  const T* r = static_cast<const T*>(x.r_HKGK) + int64_t(h) * K * columns;
  if (kMatrixInShared) {
    T* copy = reinterpret_cast<T*>(pre + ROWS * columns);
    for (int i = threadIdx.x; i < K * columns; i += blockDim.x) copy[i] = r[i];
    r = copy;
  }
  const int row = threadIdx.x / K, d = threadIdx.x % K, b = first + row;
  const bool has_unit = row < ROWS && b < x.B;
  const int64_t state = (int64_t(b) * x.H + h) * K + d;
  for (int i = threadIdx.x; i < ROWS * Kp; i += blockDim.x) hidden[i] = 0.0f;
  __syncthreads();
  float c = 0, n = 0, m = 0, y = 0, bias[4] = {};
  if (has_unit) {
    c = x.cell_BHK[state];
    n = x.normalizer_BHK[state];
    m = x.stabilizer_BHK[state];
    y = x.initial_hidden_BHK[state];
    const bool starts = x.is_start_BS && x.is_start_BS[int64_t(b) * x.S];
    hidden[row * Kp + d] = starts ? 0.0f : y;
    for (int g = 0; g < 4; ++g) bias[g] = x.bias_HGK[(h * 4 + g) * K + d];
  }
  const T* wx = static_cast<const T*>(x.wx_BSHGK);
  T* out = static_cast<T*>(x.y_BSHK);
  for (int t = 0; t < x.S; ++t) {
    const int64_t token = (int64_t(b) * x.S + t) * x.H + h;
    float p[4] = {};
    bool starts_next = false;
    if (has_unit) {  // asked for before the product, used after it
      for (int g = 0; g < 4; ++g) p[g] = to_float(wx[(token * 4 + g) * K + d]);
      if (x.is_start_BS) {
        if (x.is_start_BS[int64_t(b) * x.S + t]) c = n = m = 0.0f;
        starts_next = t + 1 < x.S && x.is_start_BS[int64_t(b) * x.S + t + 1];
      }
    }
    __syncthreads();
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
      float acc[ROWS] = {};
      accumulate<T, ROWS>(acc, r + j, columns, hidden, Kp, K);
#pragma unroll
      for (int i = 0; i < ROWS; ++i) pre[i * columns + j] = acc[i];
    }
    __syncthreads();
    if (!has_unit) continue;
    for (int g = 0; g < 4; ++g) p[g] += bias[g] + pre[row * columns + g * K + d];
    float values[kSlstmSaved];
    y = advance_unit(p, c, n, m, values);
    hidden[row * Kp + d] = starts_next ? 0.0f : y;
    out[token * K + d] = from_float<T>(y);
    if (x.saved) store_saved(x, token, d, values);
  }
  if (has_unit) {
    x.hidden_BHK[state] = y;
    x.cell_BHK[state] = c;
    x.normalizer_BHK[state] = n;
    x.stabilizer_BHK[state] = m;
  }
}

// Shared memory: dp [ROWS][4 K], partial sums of dy [parts][ROWS][K], and R transposed [4 K][K] when it fits. Thread (part, e) of the
// product sums over a range of j = (gate, unit).
template <typename T, int ROWS, bool kMatrixInShared>
__global__ void __launch_bounds__(1024, 1) backward_kernel(SlstmBackward x, int parts) {
  extern __shared__ float4 shared[];
  const int K = x.K, columns = 4 * K;
  float* dp = reinterpret_cast<float*>(shared);
  float* partial = dp + ROWS * columns;
  const int h = blockIdx.x, first = blockIdx.y * ROWS;
  const T* r = static_cast<const T*>(x.r_transposed_HGKK) + int64_t(h) * K * columns;
  if (kMatrixInShared) {
    T* copy = reinterpret_cast<T*>(partial + padded(parts * ROWS * K));
    for (int i = threadIdx.x; i < K * columns; i += blockDim.x) copy[i] = r[i];
    r = copy;
  }
  const int row = threadIdx.x / K, d = threadIdx.x % K, b = first + row;
  const bool has_unit = row < ROWS && b < x.B;
  const int64_t state = (int64_t(b) * x.H + h) * K + d;
  const auto starts_at = [&](int t) { return x.is_start_BS && x.is_start_BS[int64_t(b) * x.S + t]; };
  for (int i = threadIdx.x; i < ROWS * columns; i += blockDim.x) dp[i] = 0.0f;
  float dy = 0, dc = 0, dn = 0;
  bool starts = false;
  SlstmToken s{};
  if (has_unit) {
    dy = x.grad_hidden_BHK[state];
    dc = x.grad_cell_BHK[state];
    dn = x.grad_normalizer_BHK[state];
    starts = starts_at(x.S - 1);
    s = load_saved<T>(x, b, h, d, x.S - 1, starts);
  }
  const int part = threadIdx.x / K, range = padded((columns + parts - 1) / parts);
  const int j_begin = part * range, j_count = min(range, columns - j_begin);
  T* grad = static_cast<T*>(x.grad_wx_BSHGK);
  __syncthreads();
  for (int t = x.S - 1; t >= 0; --t) {
    if (has_unit) {
      const int64_t token = (int64_t(b) * x.S + t) * x.H + h;
      float values[4];
      unit_gradients(s, dy, starts, dc, dn, values);
      for (int g = 0; g < 4; ++g) {
        dp[row * columns + g * K + d] = values[g];
        grad[(token * 4 + g) * K + d] = from_float<T>(values[g]);
      }
    }
    const bool started = starts;
    if (has_unit && t > 0) {  // asked for before the product, used after it
      starts = starts_at(t - 1);
      s = load_saved<T>(x, b, h, d, t - 1, starts);
    }
    __syncthreads();
    if (part < parts && j_count > 0) {
      float acc[ROWS] = {};
      accumulate<T, ROWS>(acc, r + int64_t(j_begin) * K + d, K, dp + j_begin, columns, j_count);
#pragma unroll
      for (int i = 0; i < ROWS; ++i) partial[(part * ROWS + i) * K + d] = acc[i];
    }
    __syncthreads();
    if (has_unit) {
      dy = 0.0f;
      for (int i = 0; i * range < columns && !started; ++i) dy += partial[(i * ROWS + row) * K + d];
    }
  }
  if (has_unit) {
    x.grad_hidden_BHK[state] = dy;
    x.grad_cell_BHK[state] = dc;
    x.grad_normalizer_BHK[state] = dn;
  }
}

struct Device {
  int processors = 0, shared_bytes = 0;
};

cudaError_t query(Device& device) {
  int id = 0;
  cudaError_t error = cudaGetDevice(&id);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device.processors, cudaDevAttrMultiProcessorCount, id);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
  return error;
}

// Rows per block: one, so that all processors work; four once there are blocks enough, since R is then read once for all of them.
bool takes_four_rows(int B, int H, int K, int processors) {
  return H * B > 2 * processors && 4 * K <= 1024;
}

// One thread per column of the product; at least one per unit of each row.
int choose_threads(int K) {
  return 4 * K >= 1024 ? 1024 : (4 * K + 31) / 32 * 32;
}

template <typename Kernel, typename... Args>
cudaError_t launch(Kernel kernel, dim3 grid, int threads, size_t bytes, cudaStream_t stream, const Args&... args) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) return error;
  kernel<<<grid, threads, bytes, stream>>>(args...);
  return cudaGetLastError();
}

template <typename T, int ROWS>
cudaError_t launch_forward(const SlstmForward& x, const Device& device, cudaStream_t stream) {
  const dim3 grid(x.H, (x.B + ROWS - 1) / ROWS);
  const int threads = choose_threads(x.K);
  const size_t bytes = sizeof(float) * (ROWS * padded(x.K) + ROWS * 4 * x.K), with_matrix = bytes + sizeof(T) * 4 * x.K * x.K;
  if (with_matrix <= size_t(device.shared_bytes)) return launch(forward_kernel<T, ROWS, true>, grid, threads, with_matrix, stream, x);
  return launch(forward_kernel<T, ROWS, false>, grid, threads, bytes, stream, x);
}

template <typename T, int ROWS>
cudaError_t launch_backward(const SlstmBackward& x, const Device& device, cudaStream_t stream) {
  const dim3 grid(x.H, (x.B + ROWS - 1) / ROWS);
  const int threads = choose_threads(x.K), parts = threads / x.K < 4 ? threads / x.K : 4;
  const size_t bytes = sizeof(float) * (ROWS * 4 * x.K + padded(parts * ROWS * x.K)), with_matrix = bytes + sizeof(T) * 4 * x.K * x.K;
  if (with_matrix <= size_t(device.shared_bytes))
    return launch(backward_kernel<T, ROWS, true>, grid, threads, with_matrix, stream, x, parts);
  return launch(backward_kernel<T, ROWS, false>, grid, threads, bytes, stream, x, parts);
}

template <typename T>
__global__ void __launch_bounds__(256) hidden_before_kernel(SlstmHiddenBefore x) {
  const int64_t width = int64_t(x.H) * x.K, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= int64_t(x.B) * x.S * width) return;
  const int64_t token = i / width, b = token / x.S;
  T value = from_float<T>(0.0f);
  if (!x.is_start_BS || !x.is_start_BS[token]) {
    value = token == b * x.S ? from_float<T>(x.initial_hidden_BHK[b * width + i % width]) : static_cast<const T*>(x.y_BSHK)[i - width];
  }
  static_cast<T*>(x.before_BSHK)[i] = value;
}

// Eight values of a half-precision type a thread; H K is a multiple of 8.
template <typename T>
__global__ void __launch_bounds__(256) hidden_before_kernel_by_8(SlstmHiddenBefore x) {
  const int width = x.H * x.K / 8;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, token = i / width, b = token / x.S;
  if (b >= x.B) return;
  uint4 value = {};
  if (!x.is_start_BS || !x.is_start_BS[token]) {
    if (token > b * x.S) {
      value = static_cast<const uint4*>(x.y_BSHK)[i - width];
    } else {
      const float* h = x.initial_hidden_BHK + (b * width + i % width) * 8;
      value = {pack<T>(h[0], h[1]), pack<T>(h[2], h[3]), pack<T>(h[4], h[5]), pack<T>(h[6], h[7])};
    }
  }
  static_cast<uint4*>(x.before_BSHK)[i] = value;
}

bool is_supported(int B, int S, int H, int K) {
  return B > 0 && S > 0 && H > 0 && K > 0 && K <= kSlstmMaxHeadWidth;
}

}  // namespace

bool slstm_uses_tensor_cores(Type type, int K) {
  if (type == Type::float32 || K % 2 != 0 || K > kSlstmClusterMaxHeadWidth) return false;
  return K <= kSlstmMmaMaxHeadWidth || slstm_fits_cluster(K);
}

bool slstm_takes_steps(Type type, int K) {
  return K >= kSlstmStepsMinHeadWidth && !slstm_uses_tensor_cores(type, K);
}

size_t slstm_saved_bytes(Type type, int B, int S, int H, int K) {
  return slstm_uses_tensor_cores(type, K) ? saved_bytes_mma(B, S, H, K) : sizeof(float) * kSlstmSaved * B * S * H * K;
}

int slstm_num_tiles(int B) {
  return (B + kSlstmTileRows - 1) / kSlstmTileRows;
}

cudaError_t slstm_hidden_before(const SlstmHiddenBefore& x, cudaStream_t stream) {
  if (!is_supported(x.B, x.S, x.H, x.K)) return cudaErrorInvalidValue;
  const int64_t count = int64_t(x.B) * x.S * x.H * x.K;
  const auto blocks = [](int64_t threads) { return unsigned((threads + 255) / 256); };
  const auto is_aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  if (x.type != Type::float32 && x.H * x.K % 8 == 0 && is_aligned(x.y_BSHK) && is_aligned(x.before_BSHK)) {
    if (x.type == Type::bfloat16)
      hidden_before_kernel_by_8<__nv_bfloat16><<<blocks(count / 8), 256, 0, stream>>>(x);
    else
      hidden_before_kernel_by_8<__half><<<blocks(count / 8), 256, 0, stream>>>(x);
    return cudaGetLastError();
  }
  return with_type(x.type, [&](auto zero) {
    hidden_before_kernel<decltype(zero)><<<blocks(count), 256, 0, stream>>>(x);
    return cudaGetLastError();
  });
}

cudaError_t slstm_forward(const SlstmForward& x, cudaStream_t stream) {
  if (!is_supported(x.B, x.S, x.H, x.K)) return cudaErrorInvalidValue;
  if (slstm_uses_tensor_cores(x.type, x.K))
    return x.K <= kSlstmMmaMaxHeadWidth ? slstm_forward_mma(x, stream) : slstm_forward_cluster(x, stream);
  Device device;
  if (const cudaError_t error = query(device); error != cudaSuccess) return error;
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    return takes_four_rows(x.B, x.H, x.K, device.processors) ? launch_forward<T, 4>(x, device, stream)
                                                             : launch_forward<T, 1>(x, device, stream);
  });
}

cudaError_t slstm_backward(const SlstmBackward& x, cudaStream_t stream) {
  if (!is_supported(x.B, x.S, x.H, x.K)) return cudaErrorInvalidValue;
  if (slstm_uses_tensor_cores(x.type, x.K))
    return x.K <= kSlstmMmaMaxHeadWidth ? slstm_backward_mma(x, stream) : slstm_backward_cluster(x, stream);
  Device device;
  if (const cudaError_t error = query(device); error != cudaSuccess) return error;
  return with_type(x.type, [&](auto zero) {
    using T = decltype(zero);
    return takes_four_rows(x.B, x.H, x.K, device.processors) ? launch_backward<T, 4>(x, device, stream)
                                                             : launch_backward<T, 1>(x, device, stream);
  });
}

}  // namespace distil_xlstm::kernels::cuda
