// The learned features' softmaxes on CPU tensors.
#include "ops/cpu_glue.h"
#include "ops/feature_map_forms.h"

namespace distil_xlstm::ops {

Tensor softmax_pair_cpu(const Tensor& logits_RM, FeatureScale scale_of, double scale, at::ScalarType dtype) {
  const Profiled profiled("distil_xlstm::softmax_pair");
  const int64_t M = logits_RM.size(1);
  const Tensor features_RF = at::empty({logits_RM.size(0), 2 * M}, logits_RM.options());
  with_type(logits_RM, [&](auto zero) {
    using T = decltype(zero);
    at::parallel_for(0, logits_RM.size(0), 64, [&](int64_t begin, int64_t end) {
      cpu_kernels<T>().softmax_pair(M, scale_of == FeatureScale::length, scale, data<T>(logits_RM), data<T>(features_RF), begin, end);
    });
  });
  return features_RF.to(dtype);
}

Tensor softmax_pair_backward_cpu(const Tensor& grad_RF, const Tensor& features_RF, FeatureScale scale_of, double scale,
                                 at::ScalarType dtype) {
  const Profiled profiled("distil_xlstm::softmax_pair_backward");
  const int64_t M = grad_RF.size(1) / 2;
  const Tensor grad_RM = at::empty({grad_RF.size(0), M}, grad_RF.options());
  with_type(grad_RF, [&](auto zero) {
    using T = decltype(zero);
    at::parallel_for(0, grad_RF.size(0), 64, [&](int64_t begin, int64_t end) {
      cpu_kernels<T>().softmax_pair_backward(M, scale_of == FeatureScale::length, scale, data<T>(grad_RF), data<T>(features_RF),
                                             data<T>(grad_RM), begin, end);
    });
  });
  return grad_RM.to(dtype);
}

}  // namespace distil_xlstm::ops
