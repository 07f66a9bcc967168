// Block-diagonal products with 4 x 4 blocks in float32 (spec 1.1, head-wise linear; the package's default block size). One row is one
// token; `features` is a multiple of 4. Weights come unfolded, w[b * features + f]: how much input b of its block adds to output f.
#pragma once

#include <cstdint>

namespace distil_xlstm::kernels {

// y[n, f] (+)= bias[f] + sum_b w[b, f] x[n, 4 (f / 4) + b]; bias may be null.
void blockdiag4(const float* x, int64_t x_stride, const float* w, const float* bias, float* y, int64_t y_stride, int64_t rows,
                int64_t features, bool accumulate);

// dw[b, f] += sum_n dy[n, f] x[n, 4 (f / 4) + b] for f in [begin, end). Call it on some hundred rows at a time: each call sums in float32.
void blockdiag4_weight_grad(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride, float* dw, int64_t rows, int64_t features,
                            int64_t begin, int64_t end);

}  // namespace distil_xlstm::kernels
