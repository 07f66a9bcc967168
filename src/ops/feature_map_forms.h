// The implementations behind feature_map: the exponentials of rows of logits, and their gradient. Letters: R rows, M logits, F = 2 M.
#pragma once

#include "ops/feature_map.h"

namespace distil_xlstm::ops {

// [softmax(z), softmax(-z)] of each row, scaled, in `dtype`; logits contiguous.
Tensor softmax_pair_aten(const Tensor& logits_RM, FeatureScale scale_of, double scale, at::ScalarType dtype);
Tensor softmax_pair_cpu(const Tensor& logits_RM, FeatureScale scale_of, double scale, at::ScalarType dtype);

// Gradient of the logits in `dtype` from the features and theirs, both contiguous and of one type.
Tensor softmax_pair_backward_aten(const Tensor& grad_RF, const Tensor& features_RF, FeatureScale scale_of, double scale,
                                  at::ScalarType dtype);
Tensor softmax_pair_backward_cpu(const Tensor& grad_RF, const Tensor& features_RF, FeatureScale scale_of, double scale,
                                 at::ScalarType dtype);

}  // namespace distil_xlstm::ops
