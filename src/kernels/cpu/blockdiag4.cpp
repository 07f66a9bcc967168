#include "kernels/cpu/blockdiag4.h"

#include <cstring>

// One source, compiled for three instruction sets; the loader picks. Sanitizers cannot follow that choice at load time.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define DISTIL_XLSTM_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define DISTIL_XLSTM_CLONES
#endif

namespace distil_xlstm::kernels {
namespace {

// Sixteen floats: one, two or four registers.
using Vector = float __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;

// Input b of each block of four, in all four lanes of the block.
#define DISTIL_XLSTM_SPREAD(x, b) \
  __builtin_shufflevector(x, x, b, b, b, b, 4 + b, 4 + b, 4 + b, 4 + b, 8 + b, 8 + b, 8 + b, 8 + b, 12 + b, 12 + b, 12 + b, 12 + b)

#define DISTIL_XLSTM_LOAD(to, from) std::memcpy(&(to), from, sizeof(Vector))

}  // namespace

DISTIL_XLSTM_CLONES
void blockdiag4(const float* x, int64_t x_stride, const float* w, const float* bias, float* y, int64_t y_stride, int64_t rows,
                int64_t features, bool accumulate) {
  for (int64_t n = 0; n < rows; ++n) {
    const float* x_row = x + n * x_stride;
    float* y_row = y + n * y_stride;
    int64_t f = 0;
    for (; f + kLanes <= features; f += kLanes) {
      Vector in, w0, w1, w2, w3, out{};
      DISTIL_XLSTM_LOAD(in, x_row + f);
      DISTIL_XLSTM_LOAD(w0, w + f);
      DISTIL_XLSTM_LOAD(w1, w + features + f);
      DISTIL_XLSTM_LOAD(w2, w + 2 * features + f);
      DISTIL_XLSTM_LOAD(w3, w + 3 * features + f);
      if (bias) DISTIL_XLSTM_LOAD(out, bias + f);
      out += w0 * DISTIL_XLSTM_SPREAD(in, 0) + w1 * DISTIL_XLSTM_SPREAD(in, 1);
      out += w2 * DISTIL_XLSTM_SPREAD(in, 2) + w3 * DISTIL_XLSTM_SPREAD(in, 3);
      if (accumulate) {
        Vector before;
        DISTIL_XLSTM_LOAD(before, y_row + f);
        out += before;
      }
      std::memcpy(y_row + f, &out, sizeof(Vector));
    }
    for (; f < features; ++f) {
      float out = bias ? bias[f] : 0.0F;
      for (int64_t b = 0; b < 4; ++b) out += w[b * features + f] * x_row[(f & ~int64_t{3}) + b];
      y_row[f] = accumulate ? y_row[f] + out : out;
    }
  }
}

DISTIL_XLSTM_CLONES
void blockdiag4_weight_grad(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride, float* dw, int64_t rows, int64_t features,
                            int64_t begin, int64_t end) {
  int64_t f = begin;
  for (; f + kLanes <= end; f += kLanes) {
    Vector sum0{}, sum1{}, sum2{}, sum3{};
    for (int64_t n = 0; n < rows; ++n) {
      Vector grad, in;
      DISTIL_XLSTM_LOAD(grad, dy + n * dy_stride + f);
      DISTIL_XLSTM_LOAD(in, x + n * x_stride + f);
      sum0 += grad * DISTIL_XLSTM_SPREAD(in, 0);
      sum1 += grad * DISTIL_XLSTM_SPREAD(in, 1);
      sum2 += grad * DISTIL_XLSTM_SPREAD(in, 2);
      sum3 += grad * DISTIL_XLSTM_SPREAD(in, 3);
    }
    const Vector* sums[] = {&sum0, &sum1, &sum2, &sum3};
    for (int64_t b = 0; b < 4; ++b) {
      Vector total;
      DISTIL_XLSTM_LOAD(total, dw + b * features + f);
      total += *sums[b];
      std::memcpy(dw + b * features + f, &total, sizeof(Vector));
    }
  }
  for (; f < end; ++f) {
    for (int64_t b = 0; b < 4; ++b) {
      float sum = 0.0F;
      for (int64_t n = 0; n < rows; ++n) sum += dy[n * dy_stride + f] * x[n * x_stride + (f & ~int64_t{3}) + b];
      dw[b * features + f] += sum;
    }
  }
}

}  // namespace distil_xlstm::kernels
