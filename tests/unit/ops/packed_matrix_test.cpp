#include "ops/packed_matrix.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace distil_xlstm::ops {
namespace {

// Whole numbers of nine bits, more than bfloat16 holds. Sums of some thousand products of two of them fit float32's 24 bits, so that every
// order of summation gives the exact product.
Tensor random(at::IntArrayRef sizes) {
  return at::randint(-300, 301, sizes, at::kFloat);
}

void skip_without_mkl() {
  if (!PackedMatrix::supports(random({2, 2}))) GTEST_SKIP() << "LibTorch has no MKL";
}

Tensor exact_product(const Tensor& a_MK, const Tensor& matrix_KN) {
  return a_MK.to(at::kDouble).mm(matrix_KN.to(at::kDouble)).to(at::kFloat);
}

TEST(PackedMatrix, MultipliesAsFloat64DoesAtAnySize) {
  skip_without_mkl();
  if (::testing::Test::IsSkipped()) return;
  for (const auto& [K, N] : {std::pair<int64_t, int64_t>{1, 1}, {1, 7}, {7, 1}, {37, 61}, {576, 192}, {191, 1025}, {1537, 63}}) {
    for (const bool is_transposed : {true, false}) {
      const Tensor matrix_KN = is_transposed ? random({N, K}).t() : random({K, N});
      const PackedMatrix packed(matrix_KN);
      EXPECT_EQ(packed.rows(), K);
      EXPECT_EQ(packed.columns(), N);
      EXPECT_TRUE(packed.unpacked().equal(matrix_KN)) << K << " x " << N;
      for (const int64_t M : {1, 3, 65, 130}) {
        // Rows of both may be parts of longer ones; what lies beside them stays.
        const Tensor a = random({M, K + 5}).narrow(1, 2, K), wide = at::zeros({M, N + 3}), out = wide.narrow(1, 1, N);
        const Tensor expected = exact_product(a, matrix_KN);
        out.fill_(std::numeric_limits<float>::quiet_NaN());  // is not read
        packed.multiply(a, out);
        EXPECT_TRUE(out.equal(expected)) << M << " x " << K << " x " << N;
        packed.multiply(a, out, /*accumulate=*/true);
        EXPECT_TRUE(out.equal(expected * 2)) << "accumulated, " << M << " x " << K << " x " << N;
        EXPECT_EQ(wide.select(1, 0).abs().sum().item<float>() + wide.narrow(1, N + 1, 2).abs().sum().item<float>(), 0.0F);
      }
    }
  }
}

TEST(PackedMatrix, WorksInAnyThreadWhereverItWasPacked) {
  skip_without_mkl();
  if (::testing::Test::IsSkipped()) return;
  const Tensor matrix_KN = random({700, 353}).t(), a_MK = random({150, 353}), expected = exact_product(a_MK, matrix_KN);
  std::vector<PackedMatrix> packed(2);
  packed[0] = PackedMatrix(matrix_KN);
  at::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
    if (begin <= 1 && 1 < end) packed[1] = PackedMatrix(matrix_KN);
  });
  for (const PackedMatrix& matrix : packed) {
    const Tensor out = at::empty({150, 700});
    matrix.multiply(a_MK, out);
    EXPECT_TRUE(out.equal(expected));
    std::vector<Tensor> outs = {at::empty({150, 700}), at::empty({150, 700})};
    at::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) matrix.multiply(a_MK, outs[static_cast<size_t>(i)]);
    });
    EXPECT_TRUE(outs[0].equal(expected));
    EXPECT_TRUE(outs[0].equal(outs[1]));
  }
}

TEST(PackedMatrix, RefusesWhatItCannotMultiply) {
  EXPECT_FALSE(PackedMatrix::supports(at::ones({2, 2}, at::kDouble)));
  EXPECT_FALSE(PackedMatrix::supports(at::ones({2, 2}, at::kBFloat16)));
  EXPECT_FALSE(PackedMatrix::supports(Tensor()));
  EXPECT_THROW(PackedMatrix(at::ones({2, 2}, at::kDouble)), ValueError);
  skip_without_mkl();
  if (::testing::Test::IsSkipped()) return;
  const PackedMatrix packed(random({4, 3}));
  EXPECT_THROW(packed.multiply(random({2, 3}), random({2, 3})), ShapeError);
  EXPECT_THROW(packed.multiply(random({2, 4}), random({2, 4})), ShapeError);
  EXPECT_THROW(packed.multiply(random({4, 2}).t(), random({2, 3})), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::ops
