// Checks kernels/cuda/head_loss.cu against the float64 rows of kernels/cpu/head_loss.cpp and times it, alone and with the matrix products
// around it.
// Needs a GPU, and no LibTorch: `make cuda` builds it as build/cuda/tests/head_loss_check.
// Run: check | small | time
#include <cublas_v2.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernel_timing.cuh"
#include "kernels/cpu/head_loss.h"
#include "kernels/cuda/convert.cuh"
#include "kernels/cuda/head_loss.h"

namespace cpu = distil_xlstm::kernels;
namespace gpu = distil_xlstm::kernels::cuda;
using cpu::Divergence, gpu::Buffer, gpu::fill_normal, gpu::Type;

#define CHECK_BLAS(call)                                                       \
  do {                                                                         \
    const cublasStatus_t status_ = (call);                                     \
    if (status_ != CUBLAS_STATUS_SUCCESS) {                                    \
      std::printf("%s:%d: %s: %d\n", __FILE__, __LINE__, #call, int(status_)); \
      std::exit(1);                                                            \
    }                                                                          \
  } while (0)

namespace {

// Values already representable in the type.
void upload(void* to, const std::vector<double>& x, Type type) {
  std::vector<char> bytes(x.size() * size_of(type));
  for (size_t i = 0; i < x.size(); ++i) {
    const auto f = float(x[i]);
    if (type == Type::float32) std::memcpy(&bytes[i * 4], &f, 4);
    if (type == Type::bfloat16) reinterpret_cast<__nv_bfloat16*>(bytes.data())[i] = __float2bfloat16(f);
    if (type == Type::float16) reinterpret_cast<__half*>(bytes.data())[i] = __float2half(f);
  }
  CHECK_CUDA(cudaMemcpy(to, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
}
double value_at(const std::vector<char>& bytes, size_t i, Type type) {
  if (type == Type::float32) return reinterpret_cast<const float*>(bytes.data())[i];
  if (type == Type::bfloat16) return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(bytes.data())[i]);
  return __half2float(reinterpret_cast<const __half*>(bytes.data())[i]);
}

struct Case {
  Type logits, gradient;
  int64_t P, V;
  int mode;  // 0 student alone, 1 forward KL, 2 reverse KL, 3 JSD
  double T;
  bool masked, centered;
  double spread;
  bool in_place = true;
};

cpu::HeadLossRows<double> reference_rows(const gpu::HeadLoss& x) {
  cpu::HeadLossRows<double> r;
  r.vocab_size = x.V;
  r.with_gradient = true;
  r.gradient_scale = x.gradient_scale;
  r.objective = x.objective;
  return r;
}

void rows_in_parallel(const cpu::HeadLossRows<double>& rows, int64_t P) {
  const int count = std::max(1, std::min<int>(int(std::thread::hardware_concurrency()), int(P)));
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([&, i] { cpu::head_loss_rows<double>(rows, P * i / count, P * (i + 1) / count); });
  for (auto& t : threads) t.join();
}

int failures = 0;

void run_case(const Case& c, std::mt19937_64& random, std::vector<double>& worst) {
  const int64_t pad = 16 / int64_t(size_of(c.logits)), stride = (c.V + pad - 1) / pad * pad + (c.V % 3 == 0 ? pad : 0);
  std::normal_distribution<double> normal;
  std::vector<double> s(size_t(c.P * c.V)), t(s.size()), padded_s(size_t(c.P * stride), 0.0), padded_t(padded_s.size(), 0.0);
  for (int64_t p = 0; p < c.P; ++p) {
    const double offset = p % 5 == 4 ? 40.0 : 0.0;  // a common offset must not matter
    for (int64_t v = 0; v < c.V; ++v) {
      const double shared = normal(random);
      const auto at = size_t(p * c.V + v), to = size_t(p * stride + v);
      s[at] = padded_s[to] = rounded(c.spread * (0.8 * shared + 0.6 * normal(random)) + offset, c.logits);
      t[at] = padded_t[to] = rounded(c.spread * shared - offset, c.logits);
    }
    for (int64_t v = c.V; v < stride; ++v) padded_s[size_t(p * stride + v)] = padded_t[size_t(p * stride + v)] = 1e4;  // must not count
  }
  std::vector<int64_t> targets(static_cast<size_t>(c.P));
  std::vector<uint8_t> valid(static_cast<size_t>(c.P), 1);
  for (size_t p = 0; p < targets.size(); ++p) {
    targets[p] = p == 0 ? c.V - 1 : int64_t(random() % uint64_t(c.V));
    if (c.masked && random() % 3 == 0) {
      valid[p] = 0;
      targets[p] = -100;
    }
  }
  const int64_t gradient_stride = c.in_place ? stride * int64_t(size_of(c.logits) / size_of(c.gradient)) : (stride + 15) / 8 * 8;
  Buffer student(padded_s.size() * size_of(c.logits)), teacher(padded_t.size() * size_of(c.logits));
  Buffer separate(size_t(c.P * gradient_stride) * size_of(c.gradient)), targets_device(targets.size() * 8), valid_device(valid.size());
  Buffer values(targets.size() * 7 * 8), sums(7 * 8);
  upload(teacher.data, padded_t, c.logits);
  CHECK_CUDA(cudaMemcpy(targets_device.data, targets.data(), targets.size() * 8, cudaMemcpyHostToDevice));
  CHECK_CUDA(cudaMemcpy(valid_device.data, valid.data(), valid.size(), cudaMemcpyHostToDevice));

  gpu::HeadLoss x{};
  x.logits_type = c.logits, x.gradient_type = c.gradient;
  x.P = c.P, x.V = c.V, x.stride = stride, x.gradient_stride = gradient_stride;
  x.student_PV = student.data, x.teacher_PV = c.mode == 0 ? nullptr : teacher.data;
  x.gradient_PV = c.in_place ? student.data : separate.data;
  x.targets_P = static_cast<int64_t*>(targets_device.data), x.valid_P = c.masked ? static_cast<uint8_t*>(valid_device.data) : nullptr;
  x.gradient_scale = c.gradient == Type::float16 ? 256.0 : 0.37;
  x.objective = {
      .ce_weight = 0.4, .temperature = c.T, .divergence = Divergence(std::max(0, c.mode - 1)), .jsd_beta = 0.3, .mse_scale = 0.9};
  x.objective.mse_centered = c.centered;
  if (c.mode > 0) {
    x.objective.kd_weight = 0.6;
    if (c.V % 2) x.objective.mse_weight = 0.3, x.objective.label_weight = 0.25, x.objective.label_mix = 0.7;
  }
  x.values_P7 = static_cast<double*>(values.data), x.sums_7 = static_cast<double*>(sums.data);

  std::vector<double> sums_first(7), sums_now(7), values_now(targets.size() * 7);
  std::vector<char> gradient_first, gradient_now(separate.bytes);
  for (int repeat = 0; repeat < 2; ++repeat) {
    upload(student.data, padded_s, c.logits);
    CHECK_CUDA(cudaMemset(separate.data, 0xff, separate.bytes));
    CHECK_CUDA(cudaMemset(values.data, 0xff, values.bytes));
    CHECK_CUDA(cudaMemset(sums.data, 0, sums.bytes));
    CHECK_CUDA(gpu::head_loss_tile(x, nullptr));
    CHECK_CUDA(cudaDeviceSynchronize());
    CHECK_CUDA(cudaMemcpy(gradient_now.data(), x.gradient_PV, std::min(gradient_now.size(), c.in_place ? student.bytes : separate.bytes),
                          cudaMemcpyDeviceToHost));
    CHECK_CUDA(cudaMemcpy(sums_now.data(), sums.data, 56, cudaMemcpyDeviceToHost));
    if (repeat == 0) sums_first = sums_now, gradient_first = gradient_now;
  }
  CHECK_CUDA(cudaMemcpy(values_now.data(), values.data, values.bytes, cudaMemcpyDeviceToHost));
  bool same_bits = std::memcmp(sums_first.data(), sums_now.data(), 56) == 0;
  for (int64_t p = 0; p < c.P; ++p) {
    const size_t row = size_t(p * gradient_stride) * size_of(c.gradient);
    same_bits = same_bits && std::memcmp(&gradient_first[row], &gradient_now[row], size_t(c.V) * size_of(c.gradient)) == 0;
  }

  auto rows = reference_rows(x);
  std::vector<double> reference_values(targets.size() * 7), gradient = s;
  std::vector<int64_t> safe_targets = targets;
  for (auto& target : safe_targets) target = std::max<int64_t>(target, 0);
  rows.student_PV = gradient.data(), rows.teacher_PV = c.mode == 0 ? nullptr : t.data();
  rows.targets_P = safe_targets.data(), rows.sums_P7 = reference_values.data();
  rows_in_parallel(rows, c.P);
  double diff = 0.0, norm = 0.0, value_error = 0.0, sum_error = 0.0;
  std::vector<double> reference_sums(7, 0.0);
  for (int64_t p = 0; p < c.P; ++p) {
    for (int64_t v = 0; v < c.V; ++v) {
      const double ref = valid[size_t(p)] ? gradient[size_t(p * c.V + v)] : 0.0;
      const double got = value_at(gradient_now, size_t(p * gradient_stride + v), c.gradient);
      if (!valid[size_t(p)] && got != 0.0) diff += 1e30;
      diff += (got - ref) * (got - ref), norm += ref * ref;
    }
    for (int i = 0; i < (c.mode == 0 ? 1 : 7); ++i) {
      const double ref = valid[size_t(p)] ? reference_values[size_t(p * 7 + i)] : 0.0;
      reference_sums[size_t(i)] += ref;
      // Divergences are differences of terms around the log-sum-exps, of the order of 10.
      const double error = std::abs(values_now[size_t(p * 7 + i)] - ref) / (10.0 + std::abs(ref));
      value_error = std::isnan(error) ? NAN : std::max(value_error, error);
    }
  }
  for (int i = 0; i < (c.mode == 0 ? 1 : 7); ++i) {
    const double error =
        std::abs(sums_now[size_t(i)] - reference_sums[size_t(i)]) / (0.1 * double(c.P) + std::abs(reference_sums[size_t(i)]));
    sum_error = std::isnan(error) ? NAN : std::max(sum_error, error);
  }
  // Where the exact gradient vanishes (V = 1), its terms of order 1 still round.
  const double gradient_error = std::sqrt(diff / std::max(norm, 0.1 * double(c.P) * x.gradient_scale * x.gradient_scale));
  const double limit = c.gradient == Type::float32 ? 1e-5 : c.gradient == Type::bfloat16 ? 4e-3 : 1e-3;
  const bool good = gradient_error < limit && value_error < 2e-6 && sum_error < 1e-4 && same_bits;
  worst[0] = std::max(worst[0], gradient_error / limit), worst[1] = std::max(worst[1], value_error),
  worst[2] = std::max(worst[2], sum_error);
  if (!good) {
    ++failures;
    std::printf(
        "FAIL %s->%s P %lld V %lld mode %d T %.2f masked %d centered %d in place %d: gradient %.2e values %.2e sums %.2e same bits %d\n",
        name_of(c.logits), name_of(c.gradient), (long long)c.P, (long long)c.V, c.mode, c.T, c.masked, c.centered, c.in_place,
        gradient_error, value_error, sum_error, same_bits);
  }
}

// Under a memory or race checker: `small`.
void check_all(bool small) {
  std::mt19937_64 random(std::random_device{}());
  const std::pair<Type, Type> types[] = {{Type::float32, Type::float32},
                                         {Type::float32, Type::bfloat16},
                                         {Type::float32, Type::float16},
                                         {Type::bfloat16, Type::bfloat16},
                                         {Type::float16, Type::float16}};
  int cases = 0;
  for (const std::pair<Type, Type>& pair : types) {
    const Type logits = pair.first, gradient = pair.second;
    std::vector<double> worst(3, 0.0);
    const int before = cases;
    const auto run = [&](Case c) {
      c.logits = logits, c.gradient = gradient;
      run_case(c, random, worst);
      ++cases;
    };
    for (int64_t V : small ? std::vector<int64_t>{50, 5003} : std::vector<int64_t>{1, 3, 8, 50, 1000, 5003}) {
      for (int mode = 0; mode < 4; ++mode) {
        for (double T : {1.0, 1.7}) {
          for (bool in_place : {true, false}) run({logits, gradient, 7, V, mode, T, V % 2 == 0, V % 3 != 0, 2.0, in_place});
        }
      }
    }
    for (int mode = 0; mode < (small ? 0 : 4); ++mode) {
      run({logits, gradient, 9, 49152, mode, 1.3, true, false, 4.0});
      run({logits, gradient, 3, 50257, mode, 1.0, true, true, 4.0, false});
      run({logits, gradient, 5, 151936, mode, 1.6, false, mode == 1, 3.0, mode != 3});
      run({logits, gradient, 2, 151643, mode, 2.0, false, false, 3.0});
    }
    std::printf("%s -> %s: %d cases; worst gradient error / limit %.2f, value %.1e, sum %.1e\n", name_of(logits), name_of(gradient),
                cases - before, worst[0], worst[1], worst[2]);
  }
  std::printf("%d cases, %d failures\n", cases, failures);
}

double median_ms(int repeats, const std::function<void(int)>& run) {
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = -2; i < repeats; ++i) {
    CHECK_CUDA(cudaEventRecord(begin));
    run(i + 2);
    CHECK_CUDA(cudaEventRecord(end));
    CHECK_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 0) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

template <typename From, typename To>
__global__ void convert(const From* from, To* to, int64_t count) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    to[i] = To(float(from[i]));
}
// What leaves the product of the gradient: float32 to the hidden states' type, the scale undone.
__global__ void scale_to_bf16(const float* from, __nv_bfloat16* to, int64_t count, float scale) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    to[i] = __float2bfloat16(from[i] * scale);
}

cudaDataType data_type(Type type) {
  return type == Type::float32 ? CUDA_R_32F : type == Type::bfloat16 ? CUDA_R_16BF : CUDA_R_16F;
}

// One step's inputs: hidden states and a head in bf16, logits with a spread of about `spread`.
struct Step {
  int64_t N, V, D;
  Buffer student_head, teacher_head, student_hidden, teacher_hidden, targets, values, sums, gradient;
  cublasHandle_t blas;
  Step(int64_t N, int64_t V, int64_t D, float spread)
      : N(N),
        V(V),
        D(D),
        student_head(size_t(V * D * 2)),
        teacher_head(0),
        student_hidden(size_t(N * D * 2)),
        teacher_hidden(size_t(N * D * 2)),
        targets(size_t(N * 8)),
        values(size_t(N * 56)),
        sums(56),
        gradient(size_t(N * D * 2)) {
    CHECK_BLAS(cublasCreate(&blas));
    using Half = __nv_bfloat16;
    fill_normal<<<1024, 256>>>(static_cast<Half*>(student_head.data), V * D, 0.03f, 1);
    fill_normal<<<1024, 256>>>(static_cast<Half*>(student_hidden.data), N * D, spread / 0.03f / std::sqrt(float(D)), 2);
    fill_normal<<<1024, 256>>>(static_cast<Half*>(teacher_hidden.data), N * D, spread / 0.03f / std::sqrt(float(D)), 3);
    std::vector<int64_t> host(static_cast<size_t>(N));
    std::mt19937_64 random(4);
    for (auto& target : host) target = int64_t(random() % uint64_t(V));
    CHECK_CUDA(cudaMemcpy(targets.data, host.data(), host.size() * 8, cudaMemcpyHostToDevice));
    CHECK_CUDA(cudaMemset(sums.data, 0, 56));
    CHECK_CUDA(cudaDeviceSynchronize());
  }
  // logits [P, V] = hidden head^T
  void logits(void* out, int64_t stride, Type type, const Buffer& hidden, int64_t begin, int64_t P) const {
    const float one = 1, zero = 0;
    CHECK_BLAS(cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, int(V), int(P), int(D), &one, student_head.data, CUDA_R_16BF, int(D),
                            static_cast<char*>(hidden.data) + begin * D * 2, CUDA_R_16BF, int(D), &zero, out, data_type(type), int(stride),
                            CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
  }
  void backward(const void* gradient_PV, int64_t stride, float* out, int64_t P) const {
    const float one = 1, zero = 0;
    CHECK_BLAS(cublasGemmEx(blas, CUBLAS_OP_N, CUBLAS_OP_N, int(D), int(P), int(V), &one, student_head.data, CUDA_R_16BF, int(D),
                            gradient_PV, CUDA_R_16BF, int(stride), &zero, out, CUDA_R_32F, int(D), CUBLAS_COMPUTE_32F,
                            CUBLAS_GEMM_DEFAULT));
  }
  gpu::HeadLoss tile(Type logits, void* student, void* teacher, int64_t stride, int64_t begin, int64_t P, double T) const {
    gpu::HeadLoss x{};
    x.logits_type = logits, x.gradient_type = Type::bfloat16;
    x.P = P, x.V = V, x.stride = stride, x.gradient_stride = logits == Type::float32 ? 2 * stride : stride;
    x.student_PV = student, x.teacher_PV = teacher, x.gradient_PV = student;
    x.targets_P = static_cast<int64_t*>(targets.data) + begin;
    x.gradient_scale = 1.0, x.objective = {.ce_weight = 0.35, .kd_weight = 0.65, .temperature = T};
    x.values_P7 = static_cast<double*>(values.data) + begin * 7, x.sums_7 = static_cast<double*>(sums.data);
    return x;
  }
};

void time_step(int64_t N, int64_t V, int64_t D) {
  const Step step(N, V, D, 3.0f);
  const double flops = 2.0 * double(N) * double(V) * double(D);
  std::printf("\n%lld tokens x %lld x %lld: products alone at 775 TFLOP/s: %.2f ms\n", (long long)N, (long long)V, (long long)D,
              3 * flops / 775e9);
  std::printf("logits tile | MiB of tiles | logits products, loss, backward product ms | all ms | loss GB/s\n");
  for (const Type type : {Type::bfloat16, Type::float32}) {
    for (const int64_t P : {256, 512, 768, 1024}) {
      const size_t bytes = size_t(P * V) * size_of(type);
      if (type == Type::float32 && P > 512) continue;
      Buffer student(bytes), teacher(bytes), wide(size_t(P * D * 4));
      const auto tiles = [&](bool with_logits, bool with_loss, bool with_backward) {
        for (int64_t begin = 0; begin < N; begin += P) {
          const int64_t size = std::min(P, N - begin);
          if (with_logits) {
            step.logits(teacher.data, V, type, step.teacher_hidden, begin, size);
            step.logits(student.data, V, type, step.student_hidden, begin, size);
          }
          const gpu::HeadLoss x = step.tile(type, student.data, teacher.data, V, begin, size, 1.4);
          if (with_loss) CHECK_CUDA(gpu::head_loss_tile(x, nullptr));
          if (with_backward) {
            step.backward(student.data, x.gradient_stride, static_cast<float*>(wide.data), size);
            scale_to_bf16<<<1024, 256>>>(static_cast<float*>(wide.data), static_cast<__nv_bfloat16*>(step.gradient.data) + begin * D,
                                         size * D, 1.0f / float(N));
          }
        }
      };
      const double forward = median_ms(7, [&](int) { tiles(true, false, false); });
      const double loss = median_ms(7, [&](int) { tiles(false, true, false); });
      const double all = median_ms(9, [&](int) { tiles(true, true, true); });
      const double backward = median_ms(7, [&](int) { tiles(false, false, true); });
      std::printf("%4s %4lld | %4.0f | %6.3f %6.3f %6.3f | %6.3f | %5.0f\n", name_of(type), (long long)P, 2.0 * double(bytes) / 1048576.0,
                  forward, loss, backward, all, double(N * V) * double(2 * size_of(type) + 2) / loss / 1e6);
    }
  }
}

// The kernel alone on two sets of one tile's logits.
void time_kernel(int64_t P, int64_t V, Type type) {
  const Step step(2 * P, V, 256, 3.0f);
  const size_t bytes = size_t(P * V) * size_of(type);
  Buffer student_a(bytes), teacher_a(bytes), student_b(bytes), teacher_b(bytes), gradient(size_t(P * V) * 2);
  for (auto [s, t, begin] : {std::tuple<void*, void*, int64_t>{student_a.data, teacher_a.data, 0}, {student_b.data, teacher_b.data, P}}) {
    step.logits(s, V, type, step.student_hidden, begin, P);
    step.logits(t, V, type, step.teacher_hidden, begin, P);
  }
  std::printf("\nkernel alone, %s, %lld x %lld (us for %.2f GB; the floor at 4.8 TB/s: %.0f us)\n", name_of(type), (long long)P,
              (long long)V, double(P * V) * double(2 * size_of(type) + 2) / 1e9, double(P * V) * double(2 * size_of(type) + 2) / 4.8e6);
  for (const int mode : {0, 1, 2, 3, 4}) {
    gpu::HeadLoss x = step.tile(type, nullptr, nullptr, V, 0, P, mode == 1 ? 1.0 : 1.4);
    x.gradient_stride = V;
    x.objective.divergence = mode == 3 ? Divergence::reverse_kl : mode == 4 ? Divergence::jsd : Divergence::forward_kl;
    const double ms = median_ms(9, [&](int i) {
      x.student_PV = i % 2 ? student_b.data : student_a.data;
      x.teacher_PV = mode == 0 ? nullptr : i % 2 ? teacher_b.data : teacher_a.data;
      x.gradient_PV = gradient.data;
      CHECK_CUDA(gpu::head_loss_tile(x, nullptr));
    });
    std::printf(" %s %7.1f", mode == 0 ? "ce" : mode == 1 ? "T=1" : mode == 2 ? "T=1.4" : mode == 3 ? "reverse" : "jsd", ms * 1e3);
  }
  gpu::HeadLoss x = step.tile(type, student_a.data, teacher_a.data, V, 0, P, 1.4);
  x.gradient_PV = nullptr;
  std::printf(" losses alone %7.1f\n", 1e3 * median_ms(9, [&](int i) {
                                         x.student_PV = i % 2 ? student_b.data : student_a.data,
                                         x.teacher_PV = i % 2 ? teacher_b.data : teacher_a.data;
                                         CHECK_CUDA(gpu::head_loss_tile(x, nullptr));
                                       }));
}

// What the logits' type costs: losses and the hidden states' gradient of whole tiles against float64 throughout.
void rounding_error(int64_t P, int64_t V, int64_t D, float spread) {
  const Step step(P, V, D, spread);
  Buffer head(size_t(V * D * 8)), hidden(size_t(P * D * 8)), logits(size_t(P * V * 8));
  convert<<<1024, 256>>>(static_cast<__nv_bfloat16*>(step.student_head.data), static_cast<double*>(head.data), V * D);
  std::vector<double> s(size_t(P * V)), t(s.size()), values(size_t(P * 7)), grad_reference(size_t(P * D));
  const double one = 1, zero = 0;
  for (int side = 0; side < 2; ++side) {
    convert<<<1024, 256>>>(static_cast<__nv_bfloat16*>(side ? step.teacher_hidden.data : step.student_hidden.data),
                           static_cast<double*>(hidden.data), P * D);
    CHECK_BLAS(cublasDgemm(step.blas, CUBLAS_OP_T, CUBLAS_OP_N, int(V), int(P), int(D), &one, static_cast<double*>(head.data), int(D),
                           static_cast<double*>(hidden.data), int(D), &zero, static_cast<double*>(logits.data), int(V)));
    CHECK_CUDA(cudaMemcpy((side ? t : s).data(), logits.data, logits.bytes, cudaMemcpyDeviceToHost));
  }
  std::vector<int64_t> targets(static_cast<size_t>(P));
  CHECK_CUDA(cudaMemcpy(targets.data(), step.targets.data, targets.size() * 8, cudaMemcpyDeviceToHost));
  auto rows = reference_rows(step.tile(Type::float32, nullptr, nullptr, V, 0, P, 1.4));
  rows.student_PV = s.data(), rows.teacher_PV = t.data(), rows.targets_P = targets.data(), rows.sums_P7 = values.data();
  rows_in_parallel(rows, P);
  CHECK_CUDA(cudaMemcpy(logits.data, s.data(), logits.bytes, cudaMemcpyHostToDevice));
  CHECK_BLAS(cublasDgemm(step.blas, CUBLAS_OP_N, CUBLAS_OP_N, int(D), int(P), int(V), &one, static_cast<double*>(head.data), int(D),
                         static_cast<double*>(logits.data), int(V), &zero, static_cast<double*>(hidden.data), int(D)));
  CHECK_CUDA(cudaMemcpy(grad_reference.data(), hidden.data, hidden.bytes, cudaMemcpyDeviceToHost));
  std::printf(
      "\nlogits with a spread of %.0f, %lld rows x %lld: error of the mean losses, and of the hidden states' gradient, against float64\n",
      spread, (long long)P, (long long)V);
  for (const Type type : {Type::float32, Type::bfloat16}) {
    const size_t bytes = size_t(P * V) * size_of(type);
    Buffer student(bytes), teacher(bytes), wide(size_t(P * D * 4));
    step.logits(student.data, V, type, step.student_hidden, 0, P);
    step.logits(teacher.data, V, type, step.teacher_hidden, 0, P);
    const gpu::HeadLoss x = step.tile(type, student.data, teacher.data, V, 0, P, 1.4);
    CHECK_CUDA(cudaMemset(step.sums.data, 0, 56));
    CHECK_CUDA(gpu::head_loss_tile(x, nullptr));
    step.backward(student.data, x.gradient_stride, static_cast<float*>(wide.data), P);
    std::vector<float> gradient(size_t(P * D));
    std::vector<double> sums(7), reference(7, 0.0);
    CHECK_CUDA(cudaMemcpy(gradient.data(), wide.data, wide.bytes, cudaMemcpyDeviceToHost));
    CHECK_CUDA(cudaMemcpy(sums.data(), step.sums.data, 56, cudaMemcpyDeviceToHost));
    double diff = 0, norm = 0;
    for (size_t i = 0; i < gradient.size(); ++i)
      diff += std::pow(gradient[i] - grad_reference[i], 2), norm += grad_reference[i] * grad_reference[i];
    for (size_t i = 0; i < values.size(); ++i) reference[i % 7] += values[i];
    std::printf("%4s: gradient %.2e; ce %.4f %+.1e, kd %.4f %+.1e, kl at 1 %.4f %+.1e, agreement %.0f of %.0f\n", name_of(type),
                std::sqrt(diff / norm), reference[0] / double(P), (sums[0] - reference[0]) / double(P), reference[1] / double(P),
                (sums[1] - reference[1]) / double(P), reference[2] / double(P), (sums[2] - reference[2]) / double(P), sums[4],
                reference[4]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "check";
  if (what == "check" || what == "small") check_all(what == "small");
  if (what == "time") {
    rounding_error(64, 151936, 1536, 3.0f);
    rounding_error(64, 49152, 576, 6.0f);
    time_kernel(512, 151936, Type::bfloat16);
    time_kernel(384, 151936, Type::float32);
    time_kernel(2048, 49152, Type::bfloat16);
    time_step(4096, 151936, 1536);
    time_step(16384, 49152, 576);
  }
  return failures == 0 ? 0 : 1;
}
