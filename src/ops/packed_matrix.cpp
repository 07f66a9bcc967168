#include "ops/packed_matrix.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "ops/internal.h"
#include "ops/profiled.h"

// MKL's interface for matrices that are used again. LibTorch links MKL into itself and exports these; without MKL they are null.
extern "C" {
__attribute__((weak)) size_t cblas_sgemm_pack_get_size(int identifier, int m, int n, int k);
__attribute__((weak)) void cblas_sgemm_pack(int layout, int identifier, int transpose, int m, int n, int k, float alpha,
                                            const float* source, int row, float* packed);
__attribute__((weak)) void cblas_sgemm_compute(int layout, int transpose_a, int transpose_b, int m, int n, int k, const float* a, int a_row,
                                               const float* b, int b_row, float beta, float* c, int c_row);
}

namespace distil_xlstm::ops {
namespace {

enum : int { kRowMajor = 101, kNoTranspose = 111, kTranspose = 112, kPacked = 151, kSecondFactor = 162 };
constexpr int kTypicalRows = 256;  // the layout does not depend on it

int to_int(int64_t size) {
  return static_cast<int>(size);
}

std::shared_ptr<float> allocate(size_t size_bytes) {
  constexpr size_t kAlignment = 64;
  auto* data = static_cast<float*>(std::aligned_alloc(kAlignment, (size_bytes + kAlignment - 1) / kAlignment * kAlignment));
  if (data == nullptr) throw std::bad_alloc();
  return {data, [](float* p) { std::free(p); }};
}

}  // namespace

bool PackedMatrix::is_available() {
  return cblas_sgemm_pack_get_size != nullptr && cblas_sgemm_pack != nullptr && cblas_sgemm_compute != nullptr;
}

bool PackedMatrix::supports(const Tensor& matrix) {
  constexpr int64_t kLargest = int64_t{1} << 30;
  return is_available() && matrix.defined() && matrix.is_cpu() && matrix.scalar_type() == at::kFloat && matrix.dim() == 2 &&
         matrix.numel() > 0 && matrix.size(0) < kLargest && matrix.size(1) < kLargest;
}

PackedMatrix::PackedMatrix(const Tensor& matrix_KN) : K_(matrix_KN.size(0)), N_(matrix_KN.size(1)) {
  if (!supports(matrix_KN)) throw ValueError("packed matrix {}: float32 on the CPU is needed, and MKL", shape_text(matrix_KN.sizes()));
  const Tensor matrix = matrix_KN.stride(0) == 1 || matrix_KN.stride(1) == 1 ? matrix_KN : matrix_KN.contiguous();
  // A dimension of 1 has any stride: rows must be at least as far apart as they are long.
  const bool is_transposed = matrix.stride(1) != 1 || (matrix.stride(0) < N_ && K_ > 1);
  const int64_t row = is_transposed ? std::max(matrix.stride(1), K_) : std::max(matrix.stride(0), N_);
  data_ = allocate(cblas_sgemm_pack_get_size(kSecondFactor, kTypicalRows, to_int(N_), to_int(K_)));
  cblas_sgemm_pack(kRowMajor, kSecondFactor, is_transposed ? kTranspose : kNoTranspose, kTypicalRows, to_int(N_), to_int(K_), 1.0F,
                   matrix.const_data_ptr<float>(), to_int(row), data_.get());
}

void PackedMatrix::multiply(const Tensor& a_MK, const Tensor& out_MN, bool accumulate) const {
  const Profiled profiled("distil_xlstm::packed_matrix");
  const int64_t M = a_MK.size(0);
  check_shape("packed matrix: a", a_MK, {M, K_});
  check_shape("packed matrix: out", out_MN, {M, N_});
  if (M == 0) return;
  if (a_MK.scalar_type() != at::kFloat || out_MN.scalar_type() != at::kFloat || (K_ > 1 && a_MK.stride(1) != 1) ||
      (N_ > 1 && out_MN.stride(1) != 1)) {
    throw ShapeError("packed matrix: float32 with contiguous rows is needed");
  }
  const int64_t a_row = M > 1 ? a_MK.stride(0) : K_, out_row = M > 1 ? out_MN.stride(0) : N_;
  cblas_sgemm_compute(kRowMajor, kNoTranspose, kPacked, to_int(M), to_int(N_), to_int(K_), a_MK.const_data_ptr<float>(), to_int(a_row),
                      data_.get(), to_int(N_), accumulate ? 1.0F : 0.0F, out_MN.mutable_data_ptr<float>(), to_int(out_row));
}

Tensor PackedMatrix::unpacked() const {
  const Tensor matrix_KN = at::empty({K_, N_}, at::kFloat);
  multiply(at::eye(K_, at::kFloat), matrix_KN);
  return matrix_KN;
}

}  // namespace distil_xlstm::ops
