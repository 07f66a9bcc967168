// Glue of rows in fp8.
#include "kernels/cuda/fp8_rows.h"

#include "ops/cuda/glue.h"

namespace distil_xlstm::ops {
namespace {

gpu::Fp8Source source_of(Fp8Source source) {
  switch (source) {
    case Fp8Source::swiglu:
      return gpu::Fp8Source::swiglu;
    case Fp8Source::rms_norm:
      return gpu::Fp8Source::rms_norm;
    default:
      return gpu::Fp8Source::values;
  }
}

Fp8Rows fp8_rows_cuda(Fp8Source source, const Tensor& x, const Tensor& weight, double eps) {
  const c10::cuda::CUDAGuard guard(x.device());
  const int64_t K = x.size(-1) / (source == Fp8Source::swiglu ? 2 : 1), N = x.numel() / x.size(-1);
  const Tensor in = aligned(x), factor = weight.defined() ? aligned(weight) : weight;
  Fp8Rows out{at::empty({N, K}, x.options().dtype(at::kFloat8_e4m3fn)), at::empty({N, 1}, x.options().dtype(at::kFloat))};
  const gpu::Fp8Rows args{
      type_of(in), source_of(source), N, int(K), pointer(in), pointer(factor), float(eps), pointer(out.values_NK), floats(out.scale_N1)};
  check(gpu::fp8_rows(args, c10::cuda::getCurrentCUDAStream()), "fp8_rows, x", x);
  return out;
}

}  // namespace

void register_fp8_rows(CudaBackend& table) {
  table.fp8_rows = fp8_rows_cuda;
  table.max_fp8_vectors = gpu::kFp8MaxVectors;
}

}  // namespace distil_xlstm::ops
