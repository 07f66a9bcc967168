// The mLSTM in batched tensor operations (docs/mathematics.md 4). Letters beside those of mlstm.h: N chunks, L tokens of a chunk.
#include <cmath>
#include <limits>

#include "ops/chunks.h"
#include "ops/internal.h"
#include "ops/mlstm_forms.h"

namespace distil_xlstm::ops {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();

using at::matmul;

// All that follows from the inputs, shared by forward and backward.
struct Chunks {
  Tensor q_BHNLK, k_BHNLK, v_BHNLV;  // k scaled by 1/sqrt(K)
  Tensor fgate_BHNL;
  Tensor is_start_BHNL, same_document_BHNLL, reaches_end_BHNL;  // undefined without document starts
  Tensor frame_BHNL;                                            // mu
  Tensor decay_BHNLL;                                           // D
  Tensor entry_BHNL;                                            // beta: weight of the entering state in a token's read-out
  Tensor exit_BHNL;                                             // weight of a token in the leaving state
  Tensor carry_BHN;                                             // weight of the entering state in the leaving one
  Tensor cell_BHMKV, normalizer_BHMK, stabilizer_BH;            // states at the M = N + 1 chunk borders; the last stabilizer
};

void make_gates(Chunks& c, const MlstmInputs& in, int64_t L, const MlstmState& initial, Tensor& stabilizers_BHM) {
  const Tensor igate = chunked(in.igate_BSH, L, kNone);
  c.fgate_BHNL = chunked(in.fgate_BSH, L, 0);
  const Tensor log_forget = chunked(at::log_sigmoid(in.fgate_BSH), L, 0);
  const Tensor lower = at::ones({L, L}, igate.options().dtype(at::kBool)).tril();
  const Tensor between = sums_between(log_forget);
  Tensor valid = lower, enters, source = igate;
  if (in.is_start_BS.defined()) {
    const int64_t H = in.q_BSHK.size(2);
    const Tensor start = chunked(in.is_start_BS.to(at::kLong).unsqueeze(-1).expand({-1, -1, H}), L, 0);
    const Tensor document = start.cumsum(-1);
    c.is_start_BHNL = start.to(at::kBool);
    c.same_document_BHNLL = document.unsqueeze(-1) == document.unsqueeze(-2);
    c.reaches_end_BHNL = document == document.narrow(-1, L - 1, 1);
    enters = document == 0;
    valid = c.same_document_BHNLL & lower;
    source = at::where(c.is_start_BHNL, at::maximum(igate, log_forget), igate);  // an empty state has m = 0
  }
  const Tensor prefix = log_forget.cumsum(-1);
  const Tensor suffix = between.select(-2, L - 1);
  Tensor total = prefix.select(-1, L - 1), leaving = suffix + igate, leaving_source = suffix + source;
  Tensor inner = (between + source.unsqueeze(-2)).masked_fill(valid.logical_not(), kNone).amax(-1);
  if (enters.defined()) {
    total = total.masked_fill(enters.select(-1, L - 1).logical_not(), kNone);
    leaving = leaving.masked_fill(c.reaches_end_BHNL.logical_not(), kNone);
    leaving_source = leaving_source.masked_fill(c.reaches_end_BHNL.logical_not(), kNone);
  }
  std::vector<Tensor> m{initial.stabilizer_BH};
  const auto totals = total.unbind(-1), tops = leaving_source.amax(-1).unbind(-1);
  for (size_t n = 0; n < totals.size(); ++n) m.push_back(at::maximum(totals[n] + m.back(), tops[n]));
  stabilizers_BHM = at::stack(m, -1);
  const Tensor before = stabilizers_BHM.narrow(-1, 0, int64_t(totals.size())),
               after = stabilizers_BHM.narrow(-1, 1, int64_t(totals.size()));
  Tensor entering = prefix + before.unsqueeze(-1);
  if (enters.defined()) entering = entering.masked_fill(enters.logical_not(), kNone);
  c.frame_BHNL = at::maximum(inner, entering).clamp_min(kMinReadoutFrame);
  c.decay_BHNLL = (between + igate.unsqueeze(-2) - c.frame_BHNL.unsqueeze(-1)).masked_fill(valid.logical_not(), kNone).exp();
  c.entry_BHNL = (entering - c.frame_BHNL).exp();
  c.exit_BHNL = (leaving - after.unsqueeze(-1)).exp();
  c.carry_BHN = (total + before - after).exp();
}

Chunks make_chunks(const MlstmInputs& in, int64_t L, const MlstmState& initial) {
  Chunks c;
  const double scale = 1.0 / std::sqrt(double(in.q_BSHK.size(3)));
  c.q_BHNLK = chunked(in.q_BSHK, L, 0);
  c.k_BHNLK = chunked(in.k_BSHK, L, 0) * scale;  // not in place: chunked may give the input itself
  c.v_BHNLV = chunked(in.v_BSHV, L, 0);
  Tensor stabilizers_BHM;
  make_gates(c, in, L, initial, stabilizers_BHM);
  const Tensor weighted = c.k_BHNLK * c.exit_BHNL.unsqueeze(-1);
  const Tensor cells = matmul(weighted.transpose(-1, -2), c.v_BHNLV), normalizers = weighted.sum(-2);
  std::vector<Tensor> cell{initial.cell_BHKV}, normalizer{initial.normalizer_BHK};
  for (int64_t n = 0; n < cells.size(2); ++n) {
    const Tensor carry = c.carry_BHN.select(-1, n).unsqueeze(-1);
    cell.push_back(at::addcmul(cells.select(2, n), carry.unsqueeze(-1), cell.back()));
    normalizer.push_back(at::addcmul(normalizers.select(2, n), carry, normalizer.back()));
  }
  c.cell_BHMKV = at::stack(cell, 2);
  c.normalizer_BHMK = at::stack(normalizer, 2);
  c.stabilizer_BH = stabilizers_BHM.select(-1, cells.size(2)).clone();
  return c;
}

struct Readout {
  Tensor scores_BHNLL;      // S-bar
  Tensor denominator_BHNL;  // r: signed
  Tensor bound_BHNL;        // exp(-mu)
};

Readout read_out(const Chunks& c) {
  const int64_t N = c.q_BHNLK.size(2);
  const Tensor scores = matmul(c.q_BHNLK, c.k_BHNLK.transpose(-1, -2)) * c.decay_BHNLL;
  const Tensor from_state = (c.q_BHNLK * c.normalizer_BHMK.narrow(2, 0, N).unsqueeze(-2)).sum(-1);
  return {scores, from_state * c.entry_BHNL + scores.sum(-1), (-c.frame_BHNL).exp()};
}

Tensor divisor(const Readout& r) {
  return at::maximum(r.denominator_BHNL.abs(), r.bound_BHNL) + kMlstmEps;
}

}  // namespace

MlstmOutput mlstm_chunkwise_aten(const MlstmInputs& inputs, int64_t chunk_size, const MlstmState& initial) {
  const int64_t S = inputs.q_BSHK.size(1), L = std::min(chunk_size, S);
  const Chunks c = make_chunks(inputs, L, initial);
  const int64_t N = c.q_BHNLK.size(2);
  const Readout r = read_out(c);
  const Tensor numerator = matmul(r.scores_BHNLL, c.v_BHNLV) + matmul(c.q_BHNLK * c.entry_BHNL.unsqueeze(-1), c.cell_BHMKV.narrow(2, 0, N));
  const Tensor h = numerator / divisor(r).unsqueeze(-1);
  return {unchunked(h, S), {c.cell_BHMKV.select(2, N).contiguous(), c.normalizer_BHMK.select(2, N).contiguous(), c.stabilizer_BH}};
}

MlstmBackward mlstm_backward_aten(const MlstmInputs& inputs, int64_t chunk_size, const MlstmState& initial, const Tensor& h_BSHV,
                                  const Tensor& grad_h_BSHV, const MlstmState& grad_state) {
  const int64_t S = inputs.q_BSHK.size(1), L = std::min(chunk_size, S);
  const double scale = 1.0 / std::sqrt(double(inputs.q_BSHK.size(3)));
  const Chunks c = make_chunks(inputs, L, initial);
  const int64_t N = c.q_BHNLK.size(2);
  const Readout r = read_out(c);
  const Tensor grad_h = chunked(grad_h_BSHV, L, 0), h = chunked(h_BSHV, L, 0);
  const Tensor u_BHNLV = grad_h / divisor(r).unsqueeze(-1);  // gradient of the numerator
  const Tensor is_active = r.denominator_BHNL.abs() > r.bound_BHNL;
  const Tensor rho_BHNL = at::where(is_active, r.denominator_BHNL.sign() * (u_BHNLV * h).sum(-1), at::zeros({}, h.options()));

  const Tensor q_entering = c.q_BHNLK * c.entry_BHNL.unsqueeze(-1);
  const Tensor into_cell = matmul(q_entering.transpose(-1, -2), u_BHNLV), into_normalizer = -(q_entering * rho_BHNL.unsqueeze(-1)).sum(-2);
  std::vector<Tensor> cell(N + 1), normalizer(N + 1);
  cell[N] = grad_state.cell_BHKV;
  normalizer[N] = grad_state.normalizer_BHK;
  for (int64_t n = N; n-- > 0;) {
    const Tensor carry = c.carry_BHN.select(-1, n).unsqueeze(-1);
    cell[n] = at::addcmul(into_cell.select(2, n), carry.unsqueeze(-1), cell[n + 1]);
    normalizer[n] = at::addcmul(into_normalizer.select(2, n), carry, normalizer[n + 1]);
  }
  const Tensor grad_cell_BHMKV = at::stack(cell, 2), grad_normalizer_BHMK = at::stack(normalizer, 2);
  const Tensor dcell = grad_cell_BHMKV.narrow(2, 1, N), dnormalizer = grad_normalizer_BHMK.narrow(2, 1, N).unsqueeze(-2);
  const Tensor cell_before = c.cell_BHMKV.narrow(2, 0, N), normalizer_before = c.normalizer_BHMK.narrow(2, 0, N).unsqueeze(-2);

  const Tensor p_BHNLL = (matmul(u_BHNLV, c.v_BHNLV.transpose(-1, -2)) - rho_BHNL.unsqueeze(-1)) * c.decay_BHNLL;
  const Tensor exit = c.exit_BHNL.unsqueeze(-1), entry = c.entry_BHNL.unsqueeze(-1);
  const Tensor dq =
      matmul(p_BHNLL, c.k_BHNLK) + entry * (matmul(u_BHNLV, cell_before.transpose(-1, -2)) - rho_BHNL.unsqueeze(-1) * normalizer_before);
  const Tensor dk = matmul(p_BHNLL.transpose(-1, -2), c.q_BHNLK) + exit * (matmul(c.v_BHNLV, dcell.transpose(-1, -2)) + dnormalizer);
  const Tensor dv = matmul(r.scores_BHNLL.transpose(-1, -2), u_BHNLV) + exit * matmul(c.k_BHNLK, dcell);
  const Tensor digate = (c.k_BHNLK * dk).sum(-1);

  // Gradient of log f: what passes token t from earlier tokens to later ones, counted inside the chunk, plus what leaves the chunk (Gamma).
  const Tensor row = (c.q_BHNLK * dq).sum(-1) - digate;
  Tensor later = at::ones({L, L}, row.options()).triu();
  Tensor leaving = ((c.cell_BHMKV.narrow(2, 1, N) * dcell).sum(at::IntArrayRef{-1, -2}) +
                    (c.normalizer_BHMK.narrow(2, 1, N).unsqueeze(-2) * dnormalizer).sum(at::IntArrayRef{-1, -2}))
                       .unsqueeze(-1);
  if (c.is_start_BHNL.defined()) {
    later = later * c.same_document_BHNLL;
    leaving = leaving * c.reaches_end_BHNL;
  }
  Tensor dfgate = (matmul(later, row.unsqueeze(-1)).squeeze(-1) + leaving) * (-c.fgate_BHNL).sigmoid();
  if (c.is_start_BHNL.defined()) dfgate = dfgate.masked_fill(c.is_start_BHNL, 0);

  MlstmBackward out;
  out.grad_inputs = {unchunked(dq, S), unchunked(dk * scale, S), unchunked(dv, S), unchunked(digate, S), unchunked(dfgate, S), {}};
  out.grad_initial = {cell[0], normalizer[0],
                      (initial.cell_BHKV * cell[0]).sum(at::IntArrayRef{-1, -2}) + (initial.normalizer_BHK * normalizer[0]).sum(-1)};
  return out;
}

MlstmOutput mlstm_recurrent_aten(const MlstmInputs& inputs, const MlstmState& initial) {
  const int64_t S = inputs.q_BSHK.size(1);
  const double scale = 1.0 / std::sqrt(double(inputs.q_BSHK.size(3)));
  MlstmOutput out{at::empty_like(inputs.v_BSHV), initial};
  auto& [cell, normalizer, m] = out.state;
  for (int64_t t = 0; t < S; ++t) {
    if (inputs.is_start_BS.defined()) {
      const Tensor start = inputs.is_start_BS.select(1, t).to(at::kBool).view({-1, 1});
      cell = cell.masked_fill(start.unsqueeze(-1).unsqueeze(-1), 0);
      normalizer = normalizer.masked_fill(start.unsqueeze(-1), 0);
      m = m.masked_fill(start, 0);
    }
    const Tensor q = inputs.q_BSHK.select(1, t), k = inputs.k_BSHK.select(1, t) * scale, v = inputs.v_BSHV.select(1, t);
    const Tensor igate = inputs.igate_BSH.select(1, t), carried = at::log_sigmoid(inputs.fgate_BSH.select(1, t)) + m;
    m = at::maximum(carried, igate);
    const Tensor forget = (carried - m).exp().unsqueeze(-1), weighted = k * (igate - m).exp().unsqueeze(-1);
    cell = cell * forget.unsqueeze(-1) + weighted.unsqueeze(-1) * v.unsqueeze(-2);
    normalizer = normalizer * forget + weighted;
    const Tensor frame = m.clamp_min(kMinReadoutFrame), rescale = (m - frame).exp().unsqueeze(-1);
    const Tensor numerator = matmul(q.unsqueeze(-2), cell).squeeze(-2) * rescale;
    const Tensor denominator = (q * normalizer).sum(-1, /*keepdim=*/true) * rescale;
    const Tensor bound = (-frame).exp().unsqueeze(-1);
    out.h_BSHV.select(1, t).copy_(numerator / (at::maximum(denominator.abs(), bound) + kMlstmEps));
  }
  return out;
}

}  // namespace distil_xlstm::ops
