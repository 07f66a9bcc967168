#include "ops/head_loss_tile.h"
#include "ops/profiled.h"

#include <ATen/Parallel.h>

#include <limits>
#include <variant>
#include <vector>

#include "kernels/cpu/head_loss.h"

namespace distil_xlstm::ops {
namespace {

template <typename Real>
kernels::HeadLossRows<Real> kernel_rows(const HeadLossTile& tile, const Tensor& sums_P7) {
  kernels::HeadLossRows<Real> rows;
  rows.student_PV = tile.student_PV.data_ptr<Real>();
  rows.teacher_PV = tile.teacher_PV.defined() ? tile.teacher_PV.data_ptr<Real>() : nullptr;
  rows.targets_P = tile.targets_P.data_ptr<int64_t>();
  rows.sums_P7 = sums_P7.data_ptr<double>();
  rows.vocab_size = tile.student_PV.size(1);
  rows.objective = tile.objective;
  rows.with_gradient = tile.options.with_gradient;
  rows.gradient_scale = tile.gradient_scale;
  return rows;
}

constexpr int64_t kRowsPerTask = 4;

}  // namespace

struct HeadLossColumns::Rows {
  Tensor sums_P7;
  std::variant<kernels::HeadLossRows<float>, kernels::HeadLossRows<double>> rows;
  std::vector<kernels::HeadLossState> states;
};

HeadLossColumns::HeadLossColumns(const HeadLossTile& tile) : rows_(std::make_unique<Rows>()), tile_(tile) {
  const int64_t P = tile.student_PV.size(0);
  rows_->sums_P7 = at::empty({P, kNumHeadSums}, at::kDouble);
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
  const HeadObjective& objective = tile.objective;
  const bool has_teacher = tile.teacher_PV.defined();
  const Tensor target_P1 =
      (tile.valid_P.defined() ? tile.targets_P.where(tile.valid_P, at::zeros({}, tile.targets_P.options())) : tile.targets_P).unsqueeze(1);
  const PlainHeadTile plain(objective, tile.student_PV, tile.teacher_PV, target_P1);

  std::vector<Tensor> values;  // one [P] a term
  Tensor gradient_PV;
  if (tile.options.with_gradient) gradient_PV = at::zeros_like(tile.student_PV);
  const auto add = [&](const HeadTerm& term, double weight) {
    if (term.needs_teacher && !has_teacher) {
      values.push_back(at::full({tile.student_PV.size(0)}, std::numeric_limits<double>::quiet_NaN(), tile.student_PV.options()));
      return;
    }
    const bool with_gradient = tile.options.with_gradient && weight != 0.0;
    const HeadTermValue value = term.plain(plain, with_gradient);
    values.push_back(value.value_P);
    if (with_gradient) gradient_PV.add_(value.gradient_PV, weight);
  };
  for (const HeadTerm& term : kernel_head_terms()) add(term, term.weight != nullptr ? objective.*term.weight : 0.0);
  for (const WeightedHeadTerm& added : tile.options.added) add(*added.term, added.weight);

  Tensor values_NP = at::stack(values);
  if (tile.valid_P.defined()) values_NP = values_NP.masked_fill(tile.valid_P.logical_not(), 0.0);
  tile.sums.add_(values_NP.sum(1, false, at::kDouble));
  if (!tile.options.with_gradient) return;
  tile.student_PV.copy_(gradient_PV.mul_(tile.gradient_scale));
  if (tile.valid_P.defined()) tile.student_PV.masked_fill_(tile.valid_P.logical_not().unsqueeze(1), 0.0);
}

}  // namespace distil_xlstm::ops
