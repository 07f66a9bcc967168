// A frozen matrix, laid out once as MKL's kernels read it: a product then copies its other factor only. For a few hundred rows, where the
// copy of the matrix is a good part of a product, that is a fifth of the time (docs/kernels/cpu_step.md). Letters: M rows, K summed width,
// N outputs.
#pragma once

#include <memory>

#include "ops/tensor.h"

namespace distil_xlstm::ops {

class PackedMatrix {
 public:
  PackedMatrix() = default;
  // matrix_KN: any strides with one of them 1, as the transpose of a weight [N, K] has. Threads that will multiply outside a parallel
  // region are used best where this is made outside one, those inside one where it is made inside one; each works everywhere.
  explicit PackedMatrix(const Tensor& matrix_KN);

  // Whether LibTorch was built with MKL.
  [[nodiscard]] static bool is_available();
  // Whether a matrix can be packed: float32 on the CPU, and LibTorch was built with MKL.
  [[nodiscard]] static bool supports(const Tensor& matrix);

  [[nodiscard]] bool defined() const { return data_ != nullptr; }
  [[nodiscard]] int64_t rows() const { return K_; }
  [[nodiscard]] int64_t columns() const { return N_; }

  // out_MN = a_MK matrix, or += it; rows of both contiguous, `out` may be part of longer rows. Several threads may call it.
  void multiply(const Tensor& a_MK, const Tensor& out_MN, bool accumulate = false) const;
  // The matrix itself again [K, N], to the bit but for the sign of zeros.
  [[nodiscard]] Tensor unpacked() const;

 private:
  std::shared_ptr<float> data_;
  int64_t K_ = 0, N_ = 0;
};

}  // namespace distil_xlstm::ops
