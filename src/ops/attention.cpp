#include "ops/attention.h"

#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <cmath>

#include "kernels/cpu/kernels.h"
#include "ops/internal.h"
#include "ops/profiled.h"

namespace distil_xlstm::ops {
namespace {

template <typename T>
Tensor run(const Tensor& q_BSHK, const Tensor& k_BSGK, const Tensor& v_BSGK, const Tensor& is_start_BS) {
  const Profiled profiled("distil_xlstm::attention");
  const auto& kernels = kernels::cpu_kernels<T>();
  const Tensor out_BSHK = at::empty(q_BSHK.sizes(), q_BSHK.options());
  kernels::AttentionArgs<T> args{};
  args.B = q_BSHK.size(0);
  args.S = q_BSHK.size(1);
  args.H = q_BSHK.size(2);
  args.G = k_BSGK.size(2);
  args.K = q_BSHK.size(3);
  args.q_row = q_BSHK.stride(1);
  args.k_row = k_BSGK.stride(1);
  args.v_row = v_BSGK.stride(1);
  args.scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(args.K)));
  args.q = q_BSHK.const_data_ptr<T>();
  args.k = k_BSGK.const_data_ptr<T>();
  args.v = v_BSGK.const_data_ptr<T>();
  args.is_start_BS = is_start_BS.defined() ? is_start_BS.const_data_ptr<uint8_t>() : nullptr;
  args.out_BSHK = out_BSHK.mutable_data_ptr<T>();
  at::parallel_for(0, args.B * args.G, 1, [&](int64_t begin, int64_t end) {
    const Tensor workspace = at::empty({kernels.attention_workspace(args)}, q_BSHK.options());
    kernels.attention(args, begin, end, workspace.mutable_data_ptr<T>());
  });
  return out_BSHK;
}

}  // namespace

bool prefers_causal_attention(const at::TensorOptions& options, const AttentionSizes& sizes) {
  const at::ScalarType type = at::typeMetaToScalarType(options.dtype());
  if (!options.device().is_cpu() || (type != at::kFloat && type != at::kDouble)) return false;
  if (sizes.K <= kernels::kMaxNarrowHead) return true;
  constexpr int64_t kMaxTokens = 2048;  // beyond, a block's scores leave the cache
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t tasks = sizes.B * sizes.G, rounds = (tasks + threads - 1) / threads;
  return sizes.S <= kMaxTokens && 5 * tasks >= 4 * threads * rounds;  // four fifths of the threads' time is used
}

Tensor causal_attention(const Tensor& q_BSHK, const Tensor& k_BSGK, const Tensor& v_BSGK, const Tensor& is_start_BS) {
  const int64_t B = q_BSHK.size(0), S = q_BSHK.size(1), H = q_BSHK.size(2), K = q_BSHK.size(3), G = k_BSGK.size(2);
  check_shape("causal_attention: k", k_BSGK, {B, S, G, K});
  check_shape("causal_attention: v", v_BSGK, {B, S, G, K});
  if (is_start_BS.defined()) check_shape("causal_attention: is_start", is_start_BS, {B, S});
  if (G < 1 || H % G != 0) throw ShapeError("causal_attention: {} query heads for {} key heads: it must be a multiple", H, G);
  check_device("causal_attention: q", q_BSHK, {k_BSGK, v_BSGK});
  if (!q_BSHK.is_cpu() || (q_BSHK.scalar_type() != at::kFloat && q_BSHK.scalar_type() != at::kDouble))
    throw ShapeError("causal_attention: {} on {}: float32 or float64 on a CPU is needed", at::toString(q_BSHK.scalar_type()),
                     q_BSHK.device().str());
  for (const Tensor& x : {q_BSHK, k_BSGK, v_BSGK}) {
    if (x.stride(3) != 1 || x.stride(2) != K || (B > 1 && x.stride(0) != S * x.stride(1)))
      throw ShapeError("causal_attention: strides [{}]: contiguous tensors, or narrowed in the heads only, are needed",
                       fmt::join(x.strides(), ", "));
  }
  const Tensor starts_BS = is_start_BS.defined() ? is_start_BS.to(q_BSHK.device(), at::kByte).contiguous() : Tensor();
  return q_BSHK.scalar_type() == at::kDouble ? run<double>(q_BSHK, k_BSGK, v_BSGK, starts_BS)
                                             : run<float>(q_BSHK, k_BSGK, v_BSGK, starts_BS);
}

}  // namespace distil_xlstm::ops
