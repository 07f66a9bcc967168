#include "ops/attention.h"

#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <algorithm>
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

template <typename T>
Tensor run_decode(const Tensor& q_BHK, const Tensor& k_BGSK, const Tensor& v_BGSK) {
  const Profiled profiled("distil_xlstm::decode_attention");
  const auto& kernels = kernels::cpu_kernels<T>();
  const Tensor out_BHK = at::empty(q_BHK.sizes(), q_BHK.options());
  const int64_t B = q_BHK.size(0), G = k_BGSK.size(1), K = q_BHK.size(2);
  const kernels::DecodeAttentionArgs<T> args{.S = k_BGSK.size(2),
                                             .G = G,
                                             .R = q_BHK.size(1) / G,
                                             .K = K,
                                             .k_row = k_BGSK.stride(2),
                                             .k_head = k_BGSK.stride(1),
                                             .k_batch = k_BGSK.stride(0),
                                             .v_row = v_BGSK.stride(2),
                                             .v_head = v_BGSK.stride(1),
                                             .v_batch = v_BGSK.stride(0),
                                             .scale = static_cast<T>(1.0 / std::sqrt(static_cast<double>(K))),
                                             .q_BHK = q_BHK.const_data_ptr<T>(),
                                             .k = k_BGSK.const_data_ptr<T>(),
                                             .v = v_BGSK.const_data_ptr<T>(),
                                             .out_BHK = out_BHK.mutable_data_ptr<T>()};
  constexpr int64_t kElementsPerTask = 8192;  // fewer are done before another thread has begun
  at::parallel_for(0, B * G, std::max<int64_t>(kElementsPerTask / std::max<int64_t>(args.S * K, 1), 1), [&](int64_t begin, int64_t end) {
    const Tensor workspace = at::empty({kernels.decode_attention_workspace(args)}, q_BHK.options());
    kernels.decode_attention(args, begin, end, workspace.mutable_data_ptr<T>());
  });
  return out_BHK;
}

}  // namespace

Tensor decode_attention(const Tensor& q_BHK, const Tensor& k_BGSK, const Tensor& v_BGSK) {
  check_rank("decode_attention: q", q_BHK, 3);
  check_rank("decode_attention: k", k_BGSK, 4);
  const int64_t B = q_BHK.size(0), H = q_BHK.size(1), K = q_BHK.size(2), G = k_BGSK.size(1), S = k_BGSK.size(2);
  check_shape("decode_attention: k", k_BGSK, {B, G, S, K});
  check_shape("decode_attention: v", v_BGSK, {B, G, S, K});
  if (G < 1 || H % G != 0 || S < 1)
    throw ShapeError("decode_attention: {} query heads for {} key heads of {} keys: a multiple, and a key, are needed", H, G, S);
  check_device("decode_attention: q", q_BHK, {k_BGSK, v_BGSK});
  const at::ScalarType type = q_BHK.scalar_type();
  if (!q_BHK.is_cpu() || (type != at::kFloat && type != at::kDouble) || k_BGSK.scalar_type() != type || v_BGSK.scalar_type() != type)
    throw ShapeError("decode_attention: {} on {}: float32 or float64 on a CPU is needed", at::toString(type), q_BHK.device().str());
  if (k_BGSK.stride(3) != 1 || v_BGSK.stride(3) != 1) throw ShapeError("decode_attention: a token's channels must be contiguous");
  return type == at::kDouble ? run_decode<double>(q_BHK.contiguous(), k_BGSK, v_BGSK)
                             : run_decode<float>(q_BHK.contiguous(), k_BGSK, v_BGSK);
}

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
