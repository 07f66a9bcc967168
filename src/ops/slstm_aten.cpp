// The sLSTM scan in tensor operations, a few per step: what runs on devices without a kernel of ours.
#include "ops/slstm_forms.h"

namespace distil_xlstm::ops {
namespace {

// One token's column of is_start as a mask [B, 1, 1], or undefined.
Tensor start_mask(const Tensor& is_start_BS, int64_t t) {
  return is_start_BS.defined() ? is_start_BS.select(1, t).to(at::kBool).view({-1, 1, 1}) : Tensor();
}

Tensor cleared(const Tensor& x, const Tensor& mask) {
  return mask.defined() ? x.masked_fill(mask, 0) : x;
}

}  // namespace

SlstmForward slstm_forward_aten(const Tensor& wx_BSHGK, const Tensor& r_HKGK, const Tensor& bias_HGK, const SlstmState& initial,
                                const Tensor& is_start_BS, bool save) {
  const int64_t B = wx_BSHGK.size(0), S = wx_BSHGK.size(1), H = wx_BSHGK.size(2), K = wx_BSHGK.size(4);
  const Tensor r_HKJ = r_HKGK.view({H, K, 4 * K});
  SlstmForward out{at::empty({B, S, H, K}, wx_BSHGK.options()), initial, {}};
  if (save) out.saved_BSHXK = at::empty({B, S, H, kNumSaved, K}, wx_BSHGK.options());
  auto& [y, c, n, m] = out.state;
  for (int64_t t = 0; t < S; ++t) {
    if (const Tensor mask = start_mask(is_start_BS, t); mask.defined()) {
      for (Tensor* state : {&y, &c, &n, &m}) *state = cleared(*state, mask);
    }
    const Tensor recurrent_BHGK = at::bmm(y.transpose(0, 1), r_HKJ).view({H, B, 4, K}).transpose(0, 1);
    const auto p = (wx_BSHGK.select(1, t) + recurrent_BHGK + bias_HGK).unbind(2);
    const Tensor carried = at::log_sigmoid(p[1]) + m;
    const Tensor m_next = at::where(n == 0, p[0], at::maximum(p[0], carried));
    const Tensor input = (p[0] - m_next).clamp_max(0).exp(), forget = (carried - m_next).clamp_max(0).exp();
    const Tensor z = p[2].tanh(), o = p[3].sigmoid();
    c = forget * c + input * z;
    n = forget * n + input;
    m = m_next;
    y = o * c / n;
    out.y_BSHK.select(1, t).copy_(y);
    if (save) out.saved_BSHXK.select(1, t).copy_(at::stack({input, forget, z, o, (-p[1]).sigmoid(), c, n}, 2));
  }
  return out;
}

SlstmBackward slstm_backward_aten(const Tensor& grad_y_BSHK, const SlstmState& grad_state, const Tensor& y_BSHK, const Tensor& saved_BSHXK,
                                  const Tensor& r_HKGK, const SlstmState& initial, const Tensor& is_start_BS) {
  const int64_t B = y_BSHK.size(0), S = y_BSHK.size(1), H = y_BSHK.size(2), K = y_BSHK.size(3);
  const Tensor r_HJK = r_HKGK.view({H, K, 4 * K}).transpose(1, 2);
  SlstmBackward out{at::empty({B, S, H, 4, K}, y_BSHK.options()), grad_state};
  auto& [dy, dc, dn, unused] = out.grad_initial;
  for (int64_t t = S; t-- > 0;) {
    const Tensor mask = start_mask(is_start_BS, t);
    const auto x = saved_BSHXK.select(1, t).unbind(2);
    const Tensor c_before = cleared(t > 0 ? saved_BSHXK.select(1, t - 1).select(2, kSavedCell) : initial.cell_BHK, mask);
    const Tensor n_before = cleared(t > 0 ? saved_BSHXK.select(1, t - 1).select(2, kSavedNormalizer) : initial.normalizer_BHK, mask);
    const Tensor y = y_BSHK.select(1, t);
    const Tensor total = grad_y_BSHK.select(1, t) + dy;
    const Tensor scaled = total / x[kSavedNormalizer];
    dc = dc + scaled * x[kSavedOutput];
    dn = dn - scaled * y;
    const Tensor& z = x[kSavedCellInput];
    const Tensor dp_i = x[kSavedInput] * (z * dc + dn);
    const Tensor dp_f = x[kSavedForget] * (c_before * dc + n_before * dn) * x[kSavedForgetSlope];
    const Tensor dp_z = x[kSavedInput] * (1 - z * z) * dc;
    const Tensor dp_o = (1 - x[kSavedOutput]) * y * total;
    const Tensor dp_BHGK = at::stack({dp_i, dp_f, dp_z, dp_o}, 2);
    out.grad_wx_BSHGK.select(1, t).copy_(dp_BHGK);
    dc = cleared(x[kSavedForget] * dc, mask);
    dn = cleared(x[kSavedForget] * dn, mask);
    dy = cleared(at::bmm(dp_BHGK.view({B, H, 4 * K}).transpose(0, 1), r_HJK).transpose(0, 1), mask);
  }
  return out;
}

}  // namespace distil_xlstm::ops
