// Glue of the learned features' softmaxes.
#include "kernels/cuda/softmax_pair.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

Tensor softmax_pair_cuda(const Tensor& logits_RM, FeatureScale scale_of, double scale, at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(logits_RM.device());
  const int64_t R = logits_RM.size(0), M = logits_RM.size(1);
  const Tensor features_RF = at::empty({R, 2 * M}, logits_RM.options().dtype(dtype));
  const gpu::SoftmaxPair args{.logits_type = type_of(logits_RM),
                              .features_type = type_of(dtype),
                              .R = R,
                              .M = int(M),
                              .is_length = scale_of == FeatureScale::length,
                              .scale = float(scale),
                              .logits_RM = pointer(logits_RM),
                              .features_RF = pointer(features_RF),
                              .grad_RF = nullptr,
                              .grad_RM = nullptr};
  check(gpu::softmax_pair_forward(args, c10::cuda::getCurrentCUDAStream()), "feature_map forward, logits_RM", logits_RM);
  return features_RF;
}

Tensor softmax_pair_backward_cuda(const Tensor& grad_RF, const Tensor& features_RF, FeatureScale scale_of, double scale,
                                  at::ScalarType dtype) {
  const c10::cuda::CUDAGuard guard(grad_RF.device());
  const int64_t R = grad_RF.size(0), M = grad_RF.size(1) / 2;
  const Tensor grad_RM = at::empty({R, M}, grad_RF.options().dtype(dtype));
  const gpu::SoftmaxPair args{.logits_type = type_of(dtype),
                              .features_type = type_of(features_RF),
                              .R = R,
                              .M = int(M),
                              .is_length = scale_of == FeatureScale::length,
                              .scale = float(scale),
                              .logits_RM = nullptr,
                              .features_RF = pointer(features_RF),
                              .grad_RF = pointer(grad_RF),
                              .grad_RM = pointer(grad_RM)};
  check(gpu::softmax_pair_backward(args, c10::cuda::getCurrentCUDAStream()), "feature_map backward, grad_RF", grad_RF);
  return grad_RM;
}

}  // namespace

void register_softmax_pair(CudaBackend& table) {
  table.softmax_pair = softmax_pair_cuda;
  table.softmax_pair_backward = softmax_pair_backward_cuda;
  table.max_softmax_pair = gpu::kSoftmaxPairMaxWidth;
}

}  // namespace distil_xlstm::ops
