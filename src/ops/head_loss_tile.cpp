#include "ops/head_loss_tile.h"
#include "ops/profiled.h"

#include <ATen/Parallel.h>

#include <limits>
#include <variant>
#include <vector>

#include "kernels/cpu/head_loss.h"

namespace distil_xlstm::ops {
namespace {

static_assert(kernels::kNumHeadSums == kNumHeadLosses);

template <typename Real>
kernels::HeadLossRows<Real> kernel_rows(const HeadLossTile& tile, const Tensor& sums_P7) {
  const HeadLossOptions& options = tile.options;
  kernels::HeadLossRows<Real> rows;
  rows.student_PV = tile.student_PV.data_ptr<Real>();
  rows.teacher_PV = tile.teacher_PV.defined() ? tile.teacher_PV.data_ptr<Real>() : nullptr;
  rows.targets_P = tile.targets_P.data_ptr<int64_t>();
  rows.sums_P7 = sums_P7.data_ptr<double>();
  rows.vocab_size = tile.student_PV.size(1);
  rows.with_gradient = options.with_gradient;
  rows.gradient_scale = tile.gradient_scale;
  rows.ce_weight = options.ce_weight;
  rows.kd_weight = options.kd_weight;
  rows.mse_weight = options.mse_weight;
  rows.label_weight = options.label_weight;
  rows.label_mix = options.label_mix;
  rows.temperature = options.temperature;
  rows.divergence = options.divergence == Divergence::forward_kl   ? kernels::HeadDivergence::forward_kl
                    : options.divergence == Divergence::reverse_kl ? kernels::HeadDivergence::reverse_kl
                                                                   : kernels::HeadDivergence::jsd;
  rows.jsd_beta = options.jsd_beta;
  rows.mse_scale = options.mse_scale;
  rows.mse_centered = options.mse_centered;
  return rows;
}

constexpr int64_t kRowsPerTask = 4;

// Divergence of each row at T (without T^2) and its derivative by student_logits / T.
std::pair<Tensor, Tensor> divergence(const HeadLossOptions& options, const Tensor& log_p_PV, const Tensor& log_q_PV) {
  const Tensor q_PV = log_q_PV.exp();
  if (options.divergence == Divergence::forward_kl) {
    const Tensor p_PV = log_p_PV.exp();
    return {(p_PV * (log_p_PV - log_q_PV)).sum(1), q_PV - p_PV};
  }
  if (options.divergence == Divergence::reverse_kl) {
    const Tensor difference_PV = log_q_PV - log_p_PV;
    const Tensor value_P = (q_PV * difference_PV).sum(1);
    return {value_P, q_PV * (difference_PV - value_P.unsqueeze(1))};
  }
  // log(q / m) = -l and log(p / m) = u - l with u = log p - log q, l = log(1 + b (e^u - 1)); beyond |u| = 80 the smaller has no weight
  // left.
  const double b = options.jsd_beta;
  const Tensor u_PV = (log_p_PV - log_q_PV).clamp(-80.0, 80.0);
  const Tensor l_PV = (u_PV.expm1() * b).log1p();
  const Tensor kl_q_P = -(q_PV * l_PV).sum(1);
  const Tensor kl_p_P = (log_p_PV.exp() * (u_PV - l_PV)).sum(1);
  return {kl_p_P * b + kl_q_P * (1.0 - b), q_PV * (-l_PV - kl_q_P.unsqueeze(1)) * (1.0 - b)};
}

}  // namespace

struct HeadLossColumns::Rows {
  Tensor sums_P7;
  std::variant<kernels::HeadLossRows<float>, kernels::HeadLossRows<double>> rows;
  std::vector<kernels::HeadLossState> states;
};

HeadLossColumns::HeadLossColumns(const HeadLossTile& tile) : rows_(std::make_unique<Rows>()), tile_(tile) {
  const int64_t P = tile.student_PV.size(0);
  rows_->sums_P7 = at::empty({P, kNumHeadLosses}, at::kDouble);
  rows_->states.resize(static_cast<size_t>(P));
  if (tile.student_PV.scalar_type() == at::kDouble) {
    rows_->rows = kernel_rows<double>(tile, rows_->sums_P7);
  } else {
    rows_->rows = kernel_rows<float>(tile, rows_->sums_P7);
  }
}

HeadLossColumns::~HeadLossColumns() = default;

void HeadLossColumns::accumulate(int64_t first, int64_t last) {
  const Profiled profiled("distil_xlstm::head_loss_columns");
  std::visit(
      [&](const auto& rows) {
        at::parallel_for(0, tile_.student_PV.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
          kernels::head_loss_accumulate(rows, rows_->states.data(), begin, end, first, last);
        });
      },
      rows_->rows);
}

void HeadLossColumns::finish() {
  std::visit(
      [&](const auto& rows) {
        at::parallel_for(0, tile_.student_PV.size(0), kRowsPerTask,
                         [&](int64_t begin, int64_t end) { kernels::head_loss_finish(rows, rows_->states.data(), begin, end); });
      },
      rows_->rows);
  tile_.sums.add_(rows_->sums_P7.sum(0));
}

void HeadLossColumns::gradient(int64_t first, int64_t last, const Tensor& out_PC) const {
  const Profiled profiled("distil_xlstm::head_loss_gradient");
  std::visit(
      [&]<typename Real>(const kernels::HeadLossRows<Real>& rows) {
        Real* out = out_PC.mutable_data_ptr<Real>();
        at::parallel_for(0, tile_.student_PV.size(0), kRowsPerTask, [&](int64_t begin, int64_t end) {
          kernels::head_loss_gradient(rows, rows_->states.data(), begin, end, first, last, out, out_PC.stride(0));
        });
      },
      rows_->rows);
}

void head_loss_tile_cpu(const HeadLossTile& tile) {
  const int64_t V = tile.student_PV.size(1);
  HeadLossColumns columns(tile);
  columns.accumulate(0, V);
  columns.finish();
  if (tile.options.with_gradient) columns.gradient(0, V, tile.student_PV);
}

void head_loss_tile_aten(const HeadLossTile& tile) {
  const HeadLossOptions& options = tile.options;
  const double T = options.temperature, mix = options.label_mix;
  const Tensor& s_PV = tile.student_PV;
  const Tensor& t_PV = tile.teacher_PV;
  const bool has_teacher = t_PV.defined();
  const Tensor target_P1 =
      (tile.valid_P.defined() ? tile.targets_P.where(tile.valid_P, at::zeros({}, tile.targets_P.options())) : tile.targets_P).unsqueeze(1);

  const Tensor log_q1_PV = s_PV.log_softmax(1);
  const Tensor ce_P = -log_q1_PV.gather(1, target_P1).squeeze(1);
  const Tensor nan_P = at::full_like(ce_P, std::numeric_limits<double>::quiet_NaN());
  std::vector<Tensor> parts(kNumHeadLosses, nan_P);
  parts[kCe] = ce_P;
  Tensor gradient_PV;
  if (options.with_gradient) gradient_PV = log_q1_PV.exp() * (options.ce_weight + options.label_weight);
  if (has_teacher) {
    const Tensor log_p1_PV = t_PV.log_softmax(1);
    const Tensor p1_PV = log_p1_PV.exp();
    parts[kKlAt1] = (p1_PV * (log_p1_PV - log_q1_PV)).sum(1);
    parts[kTeacherNll] = -log_p1_PV.gather(1, target_P1).squeeze(1);
    parts[kAgreement] = (s_PV.argmax(1) == t_PV.argmax(1)).to(ce_P.scalar_type());
    parts[kMixedCe] = ce_P * mix - (p1_PV * log_q1_PV).sum(1) * (1.0 - mix);
    const auto [value_P, slope_PV] =
        divergence(options, T == 1.0 ? log_p1_PV : (t_PV / T).log_softmax(1), T == 1.0 ? log_q1_PV : (s_PV / T).log_softmax(1));
    parts[kKd] = value_P * (T * T);
    Tensor r_PV = at::sub(s_PV, t_PV, options.mse_scale);
    if (options.mse_centered) r_PV.sub_(r_PV.mean(1, true));
    parts[kMse] = r_PV.square().mean(1);
    if (options.with_gradient) {
      gradient_PV.add_(slope_PV, options.kd_weight * T);
      if (options.label_weight != 0.0) gradient_PV.sub_(p1_PV, options.label_weight * (1.0 - mix));
      if (options.mse_weight != 0.0) gradient_PV.add_(r_PV, options.mse_weight * 2.0 / static_cast<double>(s_PV.size(1)));
    }
  }
  Tensor parts_7P = at::stack(parts);
  if (tile.valid_P.defined()) parts_7P = parts_7P.masked_fill(tile.valid_P.logical_not(), 0.0);
  tile.sums.add_(parts_7P.sum(1, false, at::kDouble));
  if (!options.with_gradient) return;
  const double label = options.ce_weight + options.label_weight * mix;
  gradient_PV.scatter_add_(1, target_P1, at::full_like(target_P1, -label, gradient_PV.options()));
  tile.student_PV.copy_(gradient_PV.mul_(tile.gradient_scale));
  if (tile.valid_P.defined()) tile.student_PV.masked_fill_(tile.valid_P.logical_not().unsqueeze(1), 0.0);
}

}  // namespace distil_xlstm::ops
