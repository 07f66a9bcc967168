// Checks kernels/cuda/swiglu_product.cu against float64 sums of the same inputs, and times it.
// Needs a Hopper GPU, and no LibTorch: `make cuda` builds it as build/cuda/tests/swiglu_product_check.
// Run: check | small | time
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "kernel_timing.cuh"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/swiglu_product.h"

namespace gpu = distil_xlstm::kernels::cuda;
using gpu::Buffer, gpu::fill_normal, gpu::Type;

namespace {

// A block's 16 x 16 outputs in double, each input tile read into shared memory once.
template <typename T>
__global__ void reference(const T* x, const T* w, double* out, int64_t M, int I, int K) {
  __shared__ double xs[16][17], gates[16][17], ups[16][17];
  const int tx = int(threadIdx.x), ty = int(threadIdx.y);
  const int64_t row = int64_t(blockIdx.y) * 16 + ty;
  const int column = int(blockIdx.x) * 16 + tx, loaded = int(blockIdx.x) * 16 + ty;
  double gate = 0, up = 0;
  for (int k = 0; k < K; k += 16) {
    const bool in = k + tx < K;
    xs[ty][tx] = in && row < M ? double(gpu::to_float(x[row * K + k + tx])) : 0.0;
    gates[ty][tx] = in && loaded < I ? double(gpu::to_float(w[int64_t(loaded) * K + k + tx])) : 0.0;
    ups[ty][tx] = in && loaded < I ? double(gpu::to_float(w[(int64_t(I) + loaded) * K + k + tx])) : 0.0;
    __syncthreads();
    for (int i = 0; i < 16; ++i) gate += xs[ty][i] * gates[tx][i], up += xs[ty][i] * ups[tx][i];
    __syncthreads();
  }
  if (row < M && column < I) out[row * I + column] = gate / (1.0 + exp(-gate)) * up;
}

// sums: |out - ref|^2, |ref|^2, elements that are not finite.
template <typename T>
__global__ void compare(const T* out, const double* ref, int64_t count, double* sums) {
  double error = 0, norm = 0, bad = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x) {
    const double d = double(gpu::to_float(out[i])) - ref[i];
    if (isfinite(d)) error += d * d;
    if (!isfinite(d)) bad += 1;
    norm += ref[i] * ref[i];
  }
  atomicAdd(sums, error), atomicAdd(sums + 1, norm), atomicAdd(sums + 2, bad);
}
__global__ void count_different(const uint32_t* a, const uint32_t* b, int64_t count, double* sum) {
  double different = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    different += a[i] != b[i];
  if (different > 0) atomicAdd(sum, different);
}

int failures = 0, cases = 0;
uint64_t seed = 1;

// gate_scale: the standard deviation of gates and ups.
template <typename T>
double run_case(Type type, int64_t M, int I, int K, float gate_scale = 1.5f) {
  ++cases;
  constexpr size_t kGuard = 4096;
  const auto inputs = size_t(M * K), weights = size_t(2) * size_t(I) * size_t(K), outputs = size_t(M * I);
  Buffer x(inputs * 2), w(weights * 2), out(outputs * 2 + kGuard), again(outputs * 2 + kGuard), ref(outputs * 8), sums(4 * 8);
  fill_normal<<<512, 256>>>(static_cast<T*>(x.data), int64_t(inputs), 1.0f, seed++);
  fill_normal<<<512, 256>>>(static_cast<T*>(w.data), int64_t(weights), gate_scale / std::sqrt(float(K)), seed++);
  reference<<<dim3(unsigned(I + 15) / 16, unsigned(M + 15) / 16), dim3(16, 16)>>>(static_cast<T*>(x.data), static_cast<T*>(w.data),
                                                                                  static_cast<double*>(ref.data), M, I, K);
  CHECK_CUDA(cudaGetLastError());
  for (const Buffer* to : {&out, &again}) {
    CHECK_CUDA(cudaMemset(to->data, 0xff, to->bytes));
    CHECK_CUDA(gpu::swiglu_product({type, M, I, K, x.data, w.data, to->data}, nullptr));
    CHECK_CUDA(cudaDeviceSynchronize());
  }
  CHECK_CUDA(cudaMemset(sums.data, 0, sums.bytes));
  auto* totals = static_cast<double*>(sums.data);
  compare<<<256, 256>>>(static_cast<T*>(out.data), static_cast<double*>(ref.data), int64_t(outputs), totals);
  count_different<<<256, 256>>>(static_cast<uint32_t*>(out.data), static_cast<uint32_t*>(again.data), int64_t(out.bytes / 4), totals + 3);
  double host[4];
  std::vector<unsigned char> guard(kGuard);
  CHECK_CUDA(cudaMemcpy(host, sums.data, sums.bytes, cudaMemcpyDeviceToHost));
  CHECK_CUDA(cudaMemcpy(guard.data(), static_cast<char*>(out.data) + outputs * 2, kGuard, cudaMemcpyDeviceToHost));
  const auto touched = std::count_if(guard.begin(), guard.end(), [](unsigned char byte) { return byte != 0xff; });
  const double error = std::sqrt(host[0] / host[1]), limit = type == Type::bfloat16 ? 4e-3 : 5e-4;
  if (!(error < limit) || host[2] != 0 || host[3] != 0 || touched != 0) {
    ++failures;
    std::printf("FAILED %s M=%lld I=%d K=%d: error %.2e (limit %.0e), %.0f not finite, %.0f words differ, %lld bytes beyond the end\n",
                gpu::name_of(type), (long long)M, I, K, error, limit, host[2], host[3], (long long)touched);
  }
  return error;
}

void expect_refused(const gpu::SwigluProduct& x) {
  ++cases;
  if (gpu::swiglu_product(x, nullptr) == cudaErrorNotSupported) return;
  ++failures;
  std::printf("FAILED: not refused: M=%lld I=%d K=%d\n", (long long)x.M, x.I, x.K);
}

void check_all(bool small) {
  for (const Type type : {Type::bfloat16, Type::float16}) {
    double worst = 0;
    const int before = cases;
    const std::vector<int64_t> rows =
        small ? std::vector<int64_t>{1, 17, 129, 300} : std::vector<int64_t>{1, 3, 17, 127, 128, 129, 300, 4101};
    const std::vector<int> outputs = small ? std::vector<int>{8, 72, 136} : std::vector<int>{8, 64, 72, 120, 128, 136, 1536, 8960};
    const std::vector<int> inputs = small ? std::vector<int>{8, 72, 1096} : std::vector<int>{8, 64, 72, 328, 576, 1000, 1096, 1536};
    for (const int64_t M : rows) {
      for (const int I : outputs) {
        for (const int K : inputs) {
          const double error = type == Type::bfloat16 ? run_case<__nv_bfloat16>(type, M, I, K) : run_case<__half>(type, M, I, K);
          if (!(error <= worst)) worst = error;
        }
      }
    }
    // Gates whose exponentials leave float32, alone and in pairs.
    for (const int K : {72, 1096}) {
      const double error =
          type == Type::bfloat16 ? run_case<__nv_bfloat16>(type, 300, 136, K, 30.0f) : run_case<__half>(type, 300, 136, K, 30.0f);
      if (!(error <= worst)) worst = error;
    }
    std::printf("%s: %d cases, worst error %.2e\n", gpu::name_of(type), cases - before, worst);
  }
  Buffer some(1024 * 1024);
  auto* data = static_cast<char*>(some.data);
  expect_refused({Type::float32, 16, 64, 64, data, data, data});
  expect_refused({Type::bfloat16, 16, 60, 64, data, data, data});
  expect_refused({Type::bfloat16, 16, 64, 68, data, data, data});
  expect_refused({Type::bfloat16, 16, 64, 64, data + 2, data, data});
  CHECK_CUDA(gpu::swiglu_product({Type::bfloat16, 0, 64, 64, data, data, data}, nullptr));
  std::printf("%d cases, %d failures\n", cases, failures);
}

// Median of a graph's launches over sets of tensors that together exceed L2.
double median_us(int64_t M, int I, int K) {
  constexpr int kSets = 4, kRuns = 2 * kSets, kRepeats = 15;
  std::vector<std::unique_ptr<Buffer>> x, w, out;
  for (int set = 0; set < kSets; ++set) {
    x.push_back(std::make_unique<Buffer>(size_t(M * K) * 2));
    w.push_back(std::make_unique<Buffer>(size_t(2) * size_t(I) * size_t(K) * 2));
    out.push_back(std::make_unique<Buffer>(size_t(M * I) * 2));
    fill_normal<<<1024, 256>>>(static_cast<__nv_bfloat16*>(x.back()->data), M * K, 1.0f, seed++);
    fill_normal<<<1024, 256>>>(static_cast<__nv_bfloat16*>(w.back()->data), int64_t(2) * I * K, 1.0f / std::sqrt(float(K)), seed++);
  }
  const auto run = [&](int i, cudaStream_t stream) {
    const auto set = size_t(i % kSets);
    return gpu::swiglu_product({Type::bfloat16, M, I, K, x[set]->data, w[set]->data, out[set]->data}, stream);
  };
  return gpu::graph_microseconds(kRuns, kRepeats, run);
}

void time_all() {
  struct Shape {
    int64_t M;
    int I, K;
  };
  for (const Shape s : {Shape{4096, 8960, 1536}, Shape{16384, 8960, 1536}, Shape{16384, 1536, 576}, Shape{4096, 1536, 576}}) {
    const double us = median_us(s.M, s.I, s.K);
    std::printf("M=%5lld I=%d K=%d: %7.1f us, %.0f TFLOP/s\n", (long long)s.M, s.I, s.K, us, 4e-6 * double(s.M) * s.I * s.K / us);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "check";
  int major = 0, minor = 0;
  CHECK_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  CHECK_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  if (major != 9 || minor != 0) {
    std::printf("not run: swiglu_product needs a GPU of compute capability 9.0, this one has %d.%d\n", major, minor);
    return 0;
  }
  if (!gpu::swiglu_product_supports({Type::bfloat16, 128, 128, 64, nullptr, nullptr, nullptr})) {
    std::printf("swiglu_product does not run on this GPU, which it is for: was it built without sm_90a?\n");
    return 1;
  }
  if (what == "check" || what == "small") check_all(what == "small");
  if (what == "time") time_all();
  return failures == 0 ? 0 : 1;
}
