// How far the teacher's heads look back, which forget gates start from (docs/convert.md).
#pragma once

#include "nn/rotary.h"
#include "student/convert/weights.h"

namespace distil_xlstm::student {

// Mean over queries of sum_j a_ij (i - j), head by head [H], of the attention that the layer's q and k make of the stream x_BSD
// behind its norm: the teacher's, as long as nothing was trained. Queries of a row's first quarter do not count; of long rows the first
// 1024 tokens do. is_start_BS (uint8, or undefined) cuts attention. No gradient.
Tensor mean_look_back(const ConvertConfig& config, const Tensor& norm_D, const CellWeights& weights, const nn::Rotary& rotary,
                      const Tensor& x_BSD, const Tensor& is_start_BS);

}  // namespace distil_xlstm::student
