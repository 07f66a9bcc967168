// The gated delta rule in batched tensor operations (docs/mathematics.md 11): only the states go from chunk to chunk, everything else takes
// all chunks at once. Letters beside those of delta_rule.h: N chunks, L tokens of a chunk, M = N + 1 chunk borders.
#include <limits>

#include "ops/chunks.h"
#include "ops/delta_rule_forms.h"
#include "ops/internal.h"

namespace distil_xlstm::ops {
namespace {

using at::matmul;

constexpr double kNone = -std::numeric_limits<double>::infinity();

// All that follows from the inputs, shared by forward and backward.
struct Chunks {
  Tensor q_BHNLK, k_BHNLK, v_BHNLV;
  Tensor igate_BHNL, fgate_BHNL, beta_BHNL;
  Tensor is_start_BHNL, same_document_BHNLL, reaches_end_BHNL;  // undefined without document starts
  Tensor decay_BHNLL;                                           // D
  Tensor entry_BHNL;                                            // e: what is left of the entering state
  Tensor exit_BHNL;                                             // x: what is left of a token's write at the chunk's end
  Tensor carry_BHN;                                             // e of the last token
  Tensor solve_BHNLL;                                           // A; the solves read only what is below its diagonal
  Tensor inverse_BHNLL;                                         // (I + A)^-1, where it is made
  Tensor k_written_BHNLK, k_leaving_BHNLK;                      // beta e k, x k
};

void make_gates(Chunks& c, const DeltaRuleInputs& in, int64_t L) {
  c.igate_BHNL = chunked(in.igate_BSH, L, 0);
  c.fgate_BHNL = chunked(in.fgate_BSH, L, 0);
  c.beta_BHNL = c.igate_BHNL.sigmoid();
  const Tensor log_forget = chunked(at::log_sigmoid(in.fgate_BSH), L, 0);
  const Tensor between = sums_between(log_forget);
  Tensor valid = at::ones({L, L}, log_forget.options().dtype(at::kBool)).tril();
  Tensor entry = log_forget.cumsum(-1), exit = between.select(-2, L - 1);
  if (in.is_start_BS.defined()) {
    const Tensor start = chunked(in.is_start_BS.to(at::kLong).unsqueeze(-1).expand({-1, -1, in.q_BSHK.size(2)}), L, 0);
    const Tensor document = start.cumsum(-1);
    c.is_start_BHNL = start.to(at::kBool);
    c.same_document_BHNLL = document.unsqueeze(-1) == document.unsqueeze(-2);
    c.reaches_end_BHNL = document == document.narrow(-1, L - 1, 1);
    valid = c.same_document_BHNLL & valid;
    entry = entry.masked_fill(document != 0, kNone);
    exit = exit.masked_fill(c.reaches_end_BHNL.logical_not(), kNone);
  }
  c.decay_BHNLL = between.masked_fill(valid.logical_not(), kNone).exp();
  c.entry_BHNL = entry.exp();
  c.exit_BHNL = exit.exp();
  c.carry_BHN = c.entry_BHNL.select(-1, L - 1);
}

// (I + A)^-1 of the part of A below the diagonal, L a power of two: blocks of twice the size from their halves,
//   [X 0; Y Z]^-1 = [X^-1 0; -Z^-1 Y X^-1 Z^-1],
// which is substitution by blocks: no power of A is made. A few products of all chunks at once take a fraction of a solve's time on a GPU.
Tensor inverse_by_blocks(const Tensor& a_BHNLL) {
  const int64_t L = a_BHNLL.size(-1);
  // The blocks of `size` on the diagonal [C, n, size, size], as a view.
  const auto on_diagonal = [&](const Tensor& x, int64_t size) {
    const int64_t n = L / size;
    return x.view({-1, n, size, n, size}).diagonal(0, 1, 3).permute({0, 3, 1, 2});
  };
  const Tensor a = a_BHNLL.contiguous(), inverse = at::eye(L, a.options()).expand(a.sizes()).contiguous();
  for (int64_t half = 1; half < L; half *= 2) {
    const Tensor blocks = on_diagonal(inverse, 2 * half), given = on_diagonal(a, 2 * half).narrow(2, half, half).narrow(3, 0, half);
    const Tensor lower = blocks.narrow(2, half, half).narrow(3, 0, half);
    if (half == 1) {
      lower.copy_(given.neg());
      continue;
    }
    const Tensor upper_left = blocks.narrow(2, 0, half).narrow(3, 0, half),
                 lower_right = blocks.narrow(2, half, half).narrow(3, half, half);
    lower.copy_(matmul(matmul(lower_right, given), upper_left).neg_());
  }
  return inverse;
}

bool is_power_of_two(int64_t x) {
  return x > 0 && (x & (x - 1)) == 0;
}

Chunks make_chunks(const DeltaRuleInputs& in, int64_t L) {
  Chunks c;
  c.q_BHNLK = chunked(in.q_BSHK, L, 0);
  c.k_BHNLK = chunked(in.k_BSHK, L, 0);
  c.v_BHNLV = chunked(in.v_BSHV, L, 0);
  make_gates(c, in, L);
  const Tensor beta = c.beta_BHNL.unsqueeze(-1);
  c.solve_BHNLL = matmul(c.k_BHNLK * beta, c.k_BHNLK.transpose(-1, -2)) * c.decay_BHNLL;
  if (is_power_of_two(L)) c.inverse_BHNLL = inverse_by_blocks(c.solve_BHNLL);
  c.k_written_BHNLK = c.k_BHNLK * (beta * c.entry_BHNL.unsqueeze(-1));
  c.k_leaving_BHNLK = c.k_BHNLK * c.exit_BHNL.unsqueeze(-1);
  return c;
}

// (I + A)^-1 x, or its transpose's: by substitution, which stays exact where powers of A grow (keys that are nearly parallel).
Tensor solve(const Chunks& c, const Tensor& x, bool transposed) {
  if (c.inverse_BHNLL.defined()) return matmul(transposed ? c.inverse_BHNLL.transpose(-1, -2) : c.inverse_BHNLL, x);
  const Tensor a = transposed ? c.solve_BHNLL.transpose(-1, -2) : c.solve_BHNLL;
  return at::linalg_solve_triangular(a, x, /*upper=*/transposed, /*left=*/true, /*unitriangular=*/true);
}

struct Written {
  Tensor cell_BHMKV;  // at the chunk borders
  Tensor u_BHNLV;
};

// What every token writes and the states that follow: u = (I + A)^-1 (beta v - beta e k C), C the state that enters the chunk.
Written write_states(const Chunks& c, const DeltaRuleState& initial) {
  const int64_t V = c.v_BHNLV.size(-1), K = c.k_BHNLK.size(-1);
  const Tensor solved = solve(c, at::cat({c.v_BHNLV * c.beta_BHNL.unsqueeze(-1), c.k_written_BHNLK}, -1), /*transposed=*/false);
  const auto fresh = solved.narrow(-1, 0, V).unbind(2), seen = solved.narrow(-1, V, K).unbind(2);
  const auto leaving = c.k_leaving_BHNLK.transpose(-1, -2).unbind(2), carry = c.carry_BHN.unsqueeze(-1).unsqueeze(-1).unbind(2);
  std::vector<Tensor> cell{initial.cell_BHKV}, u;
  for (size_t n = 0; n < fresh.size(); ++n) {
    u.push_back(fresh[n] - matmul(seen[n], cell.back()));
    cell.push_back(at::addcmul(matmul(leaving[n], u.back()), carry[n], cell.back()));
  }
  return {at::stack(cell, 2), at::stack(u, 2)};
}

struct GradStates {
  Tensor cell_BHMKV;
  Tensor z_BHNLV;  // gradient of u, which is also that of the solve's right-hand side
};

// The same from the end to the start. read: q times e.
GradStates differentiate_states(const Chunks& c, const Tensor& scores_BHNLL, const Tensor& grad_h_BHNLV, const DeltaRuleState& grad_final) {
  const int64_t V = c.v_BHNLV.size(-1), K = c.k_BHNLK.size(-1);
  const Tensor solved =
      solve(c, at::cat({matmul(scores_BHNLL.transpose(-1, -2), grad_h_BHNLV), c.k_leaving_BHNLK}, -1), /*transposed=*/true);
  const auto inside = solved.narrow(-1, 0, V).unbind(2), later = solved.narrow(-1, V, K).unbind(2);
  const auto read = matmul((c.q_BHNLK * c.entry_BHNL.unsqueeze(-1)).transpose(-1, -2), grad_h_BHNLV).unbind(2);
  const auto written = c.k_written_BHNLK.transpose(-1, -2).unbind(2), carry = c.carry_BHN.unsqueeze(-1).unsqueeze(-1).unbind(2);
  const size_t N = inside.size();
  std::vector<Tensor> cell(N + 1), z(N);
  cell[N] = grad_final.cell_BHKV;
  for (size_t n = N; n-- > 0;) {
    z[n] = inside[n] + matmul(later[n], cell[n + 1]);
    cell[n] = at::addcmul(read[n] - matmul(written[n], z[n]), carry[n], cell[n + 1]);
  }
  return {at::stack(cell, 2), at::stack(z, 2)};
}

// What passes token t from earlier tokens to later ones, counted inside the chunk, plus what leaves the chunk (Gamma).
Tensor grad_forget(const Chunks& c, const Tensor& row_BHNL, const Tensor& leaving_BHN) {
  const int64_t L = row_BHNL.size(-1);
  Tensor later = at::ones({L, L}, row_BHNL.options()).triu(), leaving = leaving_BHN.unsqueeze(-1);
  if (c.is_start_BHNL.defined()) {
    later = later * c.same_document_BHNLL;
    leaving = leaving * c.reaches_end_BHNL;
  }
  const Tensor grad = (matmul(later, row_BHNL.unsqueeze(-1)).squeeze(-1) + leaving) * (-c.fgate_BHNL).sigmoid();
  return c.is_start_BHNL.defined() ? grad.masked_fill(c.is_start_BHNL, 0) : grad;
}

}  // namespace

DeltaRuleOutput delta_rule_chunkwise_aten(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial) {
  const int64_t S = inputs.q_BSHK.size(1), L = std::min(chunk_size, S);
  const Chunks c = make_chunks(inputs, L);
  const Written w = write_states(c, initial);
  const int64_t N = w.u_BHNLV.size(2);
  const Tensor scores = matmul(c.q_BHNLK, c.k_BHNLK.transpose(-1, -2)) * c.decay_BHNLL;
  const Tensor h = matmul(scores, w.u_BHNLV) + matmul(c.q_BHNLK * c.entry_BHNL.unsqueeze(-1), w.cell_BHMKV.narrow(2, 0, N));
  return {unchunked(h, S), {w.cell_BHMKV.select(2, N).contiguous()}};
}

DeltaRuleBackward delta_rule_backward_aten(const DeltaRuleInputs& inputs, int64_t chunk_size, const DeltaRuleState& initial,
                                           const Tensor& grad_h_BSHV, const DeltaRuleState& grad_final) {
  const int64_t S = inputs.q_BSHK.size(1), L = std::min(chunk_size, S);
  const Chunks c = make_chunks(inputs, L);
  const Written w = write_states(c, initial);
  const int64_t N = w.u_BHNLV.size(2);
  const Tensor scores = matmul(c.q_BHNLK, c.k_BHNLK.transpose(-1, -2)) * c.decay_BHNLL;
  const Tensor grad_h = chunked(grad_h_BSHV, L, 0);
  const GradStates g = differentiate_states(c, scores, grad_h, grad_final);
  const Tensor cell = w.cell_BHMKV.narrow(2, 0, N).transpose(-1, -2), dcell = g.cell_BHMKV.narrow(2, 1, N);
  const Tensor u_columns = w.u_BHNLV.transpose(-1, -2), entry = c.entry_BHNL.unsqueeze(-1);

  const Tensor dv = c.beta_BHNL.unsqueeze(-1) * g.z_BHNLV;
  const Tensor p_BHNLL = matmul(grad_h, u_columns) * c.decay_BHNLL;
  const Tensor r_BHNLL = (matmul(dv, u_columns) * c.decay_BHNLL).tril(-1);
  const Tensor dq = matmul(p_BHNLL, c.k_BHNLK) + entry * matmul(grad_h, cell);
  const Tensor dk = matmul(p_BHNLL.transpose(-1, -2), c.q_BHNLK) - matmul(r_BHNLL + r_BHNLL.transpose(-1, -2), c.k_BHNLK) +
                    c.exit_BHNL.unsqueeze(-1) * matmul(w.u_BHNLV, dcell.transpose(-1, -2)) - entry * matmul(dv, cell);
  const Tensor digate = (w.u_BHNLV * g.z_BHNLV).sum(-1) * (-c.igate_BHNL).sigmoid();
  const Tensor row = (c.q_BHNLK * dq).sum(-1) - (c.v_BHNLV * dv).sum(-1);
  const Tensor leaving = (w.cell_BHMKV.narrow(2, 1, N) * dcell).sum(at::IntArrayRef{-1, -2});
  const Tensor dfgate = grad_forget(c, row, leaving);
  return {{unchunked(dq, S), unchunked(dk, S), unchunked(dv, S), unchunked(digate, S), unchunked(dfgate, S), {}},
          {g.cell_BHMKV.select(2, 0).contiguous()}};
}

DeltaRuleOutput delta_rule_recurrent_aten(const DeltaRuleInputs& inputs, const DeltaRuleState& initial) {
  const int64_t S = inputs.q_BSHK.size(1);
  DeltaRuleOutput out{at::empty_like(inputs.v_BSHV), initial};
  Tensor& cell = out.state.cell_BHKV;
  const Tensor forget = inputs.fgate_BSH.sigmoid(), beta = inputs.igate_BSH.sigmoid();
  for (int64_t t = 0; t < S; ++t) {
    const auto row = [&](const Tensor& x) { return x.select(1, t).unsqueeze(-2); };
    cell = cell * forget.select(1, t).unsqueeze(-1).unsqueeze(-1);
    if (inputs.is_start_BS.defined()) cell = cell.masked_fill(inputs.is_start_BS.select(1, t).to(at::kBool).view({-1, 1, 1, 1}), 0);
    const Tensor k = row(inputs.k_BSHK), u = beta.select(1, t).unsqueeze(-1).unsqueeze(-1) * (row(inputs.v_BSHV) - matmul(k, cell));
    cell = cell + matmul(k.transpose(-1, -2), u);
    out.h_BSHV.select(1, t).copy_(matmul(row(inputs.q_BSHK), cell).squeeze(-2));
  }
  return out;
}

}  // namespace distil_xlstm::ops
