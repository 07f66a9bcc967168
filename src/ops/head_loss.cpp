#include "ops/head_loss.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "base/error.h"
#include "ops/cuda_backend.h"
#include "ops/head_loss_tile.h"

namespace distil_xlstm::ops {
namespace {

void check_model(const char* who, const Tensor& hidden_BSD, const Tensor& head_VD) {
  if (hidden_BSD.dim() != 3 || head_VD.dim() != 2 || hidden_BSD.size(2) != head_VD.size(1)) {
    throw ShapeError("head_losses: {} hidden states {}, head {}: they must be [B, S, D] and [V, D]", who, hidden_BSD.sizes().vec(),
                     head_VD.sizes().vec());
  }
}

void check_shapes(const Tensor& student_BSD, const Tensor& student_head_VD, const Tensor& teacher_BSD, const Tensor& teacher_head_VD,
                  const Tensor& targets_BS, const Tensor& mask_BS) {
  check_model("student", student_BSD, student_head_VD);
  for (const auto& [name, tensor] : {std::pair<const char*, Tensor>{"targets", targets_BS}, {"mask", mask_BS}}) {
    if (tensor.dim() != 2 || tensor.size(0) != student_BSD.size(0) || tensor.size(1) != student_BSD.size(1)) {
      throw ShapeError("head_losses: student hidden states {}, {} {}: it must be [B, S]", student_BSD.sizes().vec(), name,
                       tensor.sizes().vec());
    }
  }
  if (!teacher_BSD.defined()) return;
  check_model("teacher", teacher_BSD, teacher_head_VD);
  const auto logits = [](const Tensor& hidden, const Tensor& head) {
    return std::vector<int64_t>{hidden.size(0), hidden.size(1), head.size(0)};
  };
  const auto student = logits(student_BSD, student_head_VD), teacher = logits(teacher_BSD, teacher_head_VD);
  if (student[0] != teacher[0] || student[1] != teacher[1]) {
    throw ShapeError("head_losses: teacher logits {}, student logits {}: the positions differ; give both models the same rows", teacher,
                     student);
  }
  if (student[2] != teacher[2]) {
    throw ShapeError(
        "head_losses: teacher logits {}, student logits {}: the vocabularies differ; make the student from this teacher's head", teacher,
        student);
  }
}

void check_objective(const HeadObjective& objective, const HeadLossOptions& options, bool has_teacher) {
  if (!(objective.temperature > 0.0)) throw ValueError("head_losses: temperature = {}: it must be above 0", objective.temperature);
  if (objective.divergence == Divergence::jsd && !(objective.jsd_beta > 0.0 && objective.jsd_beta < 1.0)) {
    throw ValueError("head_losses: jsd_beta = {}: it must lie between 0 and 1, both excluded", objective.jsd_beta);
  }
  if (has_teacher) return;
  const auto check = [](const HeadTerm& term, double weight) {
    if (term.needs_teacher && weight != 0.0)
      throw ValueError("head_losses: {} has the weight {} without a teacher: give one, or weigh ce_loss alone", term.name, weight);
  };
  for (const HeadTerm& term : kernel_head_terms()) check(term, term.weight != nullptr ? objective.*term.weight : 0.0);
  for (const auto& [term, weight] : options.added) check(*term, weight);
}

void check_targets(const Tensor& targets_P, int64_t vocab_size) {
  if (targets_P.numel() == 0) return;
  const int64_t low = targets_P.min().item<int64_t>(), high = targets_P.max().item<int64_t>();
  if (low >= 0 && high < vocab_size) return;
  throw ValueError(
      "head_losses: target {} where the mask counts it, but the head has {} tokens: the text was prepared with another tokenizer",
      low < 0 ? low : high, vocab_size);
}

constexpr int64_t kMiB = int64_t{1} << 20;

bool is_half_precision(at::ScalarType type) {
  return type == at::kHalf || type == at::kBFloat16;
}

// The type of the CUDA kernel's logits. A training step takes them in half precision as the products' inputs are; losses to compare models
// by (no gradient) keep float32.
at::ScalarType kernel_logits_type(const HeadLossOptions& options, const Tensor& student_head_VD, const Tensor& teacher_head_VD) {
  const at::ScalarType type = student_head_VD.scalar_type();
  const bool same = !teacher_head_VD.defined() || teacher_head_VD.scalar_type() == type;
  return options.with_gradient && same && is_half_precision(type) ? type : at::kFloat;
}

// What the logits' gradient is multiplied by before its product with the head; the rest of gradient_scale follows in float32. In half
// precision its entries, at most about the sum of the weights, then lie below 2^10, with room for float16's small ones: probabilities down
// to 1e-10 count.
double logits_gradient_scale(const HeadObjective& objective, const HeadLossOptions& options, at::ScalarType head_type,
                             double gradient_scale) {
  if (!is_half_precision(head_type)) return gradient_scale;
  double weights = 0.0;
  for (const HeadTerm& term : kernel_head_terms()) {
    if (term.weight != nullptr) weights += std::abs(objective.*term.weight) * (term.grows_with_temperature ? objective.temperature : 1.0);
  }
  for (const auto& added : options.added) weights += std::abs(added.weight);
  return weights > 0.0 ? std::exp2(std::floor(std::log2(1024.0 / weights))) : 1.0;
}

// A model's hidden states of the counted positions and its head in the dtype of its matrix products; logits are float32 (float64), or of
// another type where the CUDA kernel takes it.
class Logits {
 public:
  Logits() = default;
  Logits(const Tensor& hidden_BSD, const Head& head, const Tensor& kept, std::optional<at::ScalarType> logits_type)
      : head_VD_(head.weight().detach()), columns_(head) {
    hidden_PD_ = hidden_BSD.detach().reshape({-1, hidden_BSD.size(2)});
    if (kept.defined()) hidden_PD_ = hidden_PD_.index_select(0, kept);
    if (hidden_BSD.scalar_type() == at::kDouble || head_VD_.scalar_type() == at::kDouble) {
      head_VD_ = head_VD_.to(at::kDouble);
    } else if (columns_.columns() == nullptr) {
      head_VD_ = product_head(head_VD_);
    }
    const bool is_packed = columns_.columns() != nullptr;
    hidden_PD_ = hidden_PD_.to(is_packed ? at::kFloat : head_VD_.scalar_type()).contiguous();
    product_type_ = head_VD_.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    dtype_ = logits_type.value_or(product_type_);
  }

  [[nodiscard]] at::ScalarType dtype() const { return dtype_; }
  [[nodiscard]] int64_t positions() const { return hidden_PD_.size(0); }
  [[nodiscard]] int64_t vocab_size() const { return head_VD_.size(0); }

  // Room for a tile's logits, which the next tile uses again.
  Tensor room(int64_t size) {
    constexpr int64_t kRowMultiple = 64;  // aligned rows, for the CUDA kernel and for the products' speed
    const int64_t V = head_VD_.size(0), stride = head_VD_.is_cuda() ? (V + kRowMultiple - 1) / kRowMultiple * kRowMultiple : V;
    if (!buffer_.defined()) buffer_ = at::empty({size, stride}, head_VD_.options().dtype(dtype_)).narrow(1, 0, V);
    return buffer_.narrow(0, 0, size);
  }

  Tensor tile(int64_t begin, int64_t size) {
    Tensor logits_PV = room(size);
    product_out(logits_PV, hidden_PD_.narrow(0, begin, size), head_VD_.t());
    return logits_PV;
  }

  // Columns [first, last) of a tile, on a CPU; last - first is kHeadColumns, or less at the end.
  void fill_columns(const Tensor& logits_PV, int64_t begin, int64_t first, int64_t last) const {
    const Tensor hidden_PD = hidden_PD_.narrow(0, begin, logits_PV.size(0));
    Tensor out_PC = logits_PV.narrow(1, first, last - first);
    if (columns_.columns() != nullptr) {
      columns_.columns()[first / kHeadColumns].logits_DV.multiply(hidden_PD, out_PC);
    } else {
      at::mm_out(out_PC, hidden_PD, head_VD_.narrow(0, first, last - first).t());
    }
  }
  // sum_PD += d loss / d hidden from those columns (first 0: =).
  void add_backward(const Tensor& gradient_PC, int64_t first, Tensor& sum_PD) const {
    const int64_t count = gradient_PC.size(1);
    const auto* packed = columns_.columns() != nullptr ? &columns_.columns()[first / kHeadColumns].gradient_VD : nullptr;
    if (packed != nullptr && packed->defined()) {
      packed->multiply(gradient_PC, sum_PD, /*accumulate=*/first > 0);
    } else {
      const Tensor head_CD = head_VD_.narrow(0, first, count).to(product_type_);
      at::addmm_out(sum_PD, sum_PD, gradient_PC, head_CD, /*beta=*/first > 0 ? 1 : 0);
    }
  }
  [[nodiscard]] Tensor gradient_room(int64_t size) const {
    return at::empty({size, head_VD_.size(1)}, head_VD_.options().dtype(product_type_));
  }

  // d loss / d hidden of a tile whose logits' gradient is given.
  [[nodiscard]] Tensor backward(const Tensor& gradient_PV) const {
    const Tensor gradient = gradient_PV.to(head_VD_.scalar_type());
    Tensor out = gradient_room(gradient.size(0));
    product_out(out, gradient, head_VD_);
    return out;
  }

 private:
  // Half-precision factors give a float32 product without a rounding in between.
  void product_out(Tensor& out, const Tensor& a, const Tensor& b) const {
    if (head_VD_.scalar_type() == out.scalar_type()) {
      at::mm_out(out, a, b);
    } else {
      at::mm_out(out, a, b, out.scalar_type());
    }
  }

  Tensor hidden_PD_, head_VD_, buffer_;
  Head columns_;                                                   // packed, or without its weight
  at::ScalarType dtype_ = at::kFloat, product_type_ = at::kFloat;  // of the logits, and of the gradient's product
};

// A tile on a CPU, a part of the vocabulary at a time. Returns the gradient of the tile's hidden states, where there is one.
Tensor run_columns(Logits& student, const Logits* teacher, int64_t begin, const HeadLossTile& tile) {
  const int64_t V = tile.student_PV.size(1), P = tile.student_PV.size(0);
  HeadLossColumns losses(tile);
  for (int64_t first = 0; first < V; first += kHeadColumns) {
    const int64_t last = std::min(first + kHeadColumns, V);
    student.fill_columns(tile.student_PV, begin, first, last);
    if (teacher != nullptr) teacher->fill_columns(tile.teacher_PV, begin, first, last);
    losses.accumulate(first, last);
  }
  losses.finish();
  if (!tile.options.with_gradient) return {};
  Tensor gradient_PD = student.gradient_room(P);
  const Tensor room_PC = at::empty({P, std::min(kHeadColumns, V)}, tile.student_PV.options());
  for (int64_t first = 0; first < V; first += kHeadColumns) {
    const int64_t last = std::min(first + kHeadColumns, V);
    const Tensor gradient_PC = room_PC.narrow(1, 0, last - first);
    losses.gradient(first, last, gradient_PC);
    student.add_backward(gradient_PC, first, gradient_PD);
  }
  return gradient_PD;
}

}  // namespace

// On a CPU kHeadColumns of both logits of 128 positions stay in cache, and those are enough for efficient products; the threads of a step
// share a quarter of a GiB. The CUDA kernel needs no memory beyond the logits, so its tiles are the largest that half a GiB allows: each
// reads both heads anew.
HeadTile head_tile(HeadBackend backend, int64_t vocab_size, int64_t element_size, int64_t num_callers) {
  HeadTile tile{.position_bytes = 2 * vocab_size * element_size};
  if (backend == HeadBackend::cuda_kernel) {
    tile.positions = std::max<int64_t>(448 * kMiB / tile.position_bytes / 256 * 256, 256);
  } else if (backend == HeadBackend::aten) {
    tile.positions = std::max<int64_t>(256 * kMiB / tile.position_bytes / 64 * 64, 64);
  } else {
    const int64_t share = 256 * kMiB / std::max<int64_t>(num_callers, 1) / tile.position_bytes;
    tile.positions = std::max({8 * kMiB / tile.position_bytes, std::min<int64_t>(128, share), int64_t{1}});
  }
  return tile;
}

Tensor product_head(const Tensor& head_VD) {
  return head_VD.is_cpu() && is_half_precision(head_VD.scalar_type()) ? head_VD.to(at::kFloat) : head_VD;
}

Head Head::packed(const Tensor& weight_VD, bool with_gradient) {
  if (!weight_VD.is_cpu() || weight_VD.scalar_type() == at::kDouble) return product_head(weight_VD);
  const Tensor single_VD = product_head(weight_VD.detach());
  if (!PackedMatrix::supports(single_VD)) return single_VD;
  Head head(weight_VD);
  const int64_t V = weight_VD.size(0), count = (V + kHeadColumns - 1) / kHeadColumns;
  head.columns_ = std::shared_ptr<Columns[]>(new Columns[static_cast<size_t>(count)]);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * kHeadColumns;
      const Tensor part_CD = single_VD.narrow(0, first, std::min(kHeadColumns, V - first));
      head.columns_[i].logits_DV = PackedMatrix(part_CD.t());
      if (with_gradient) head.columns_[i].gradient_VD = PackedMatrix(part_CD);
    }
  });
  return head;
}

HeadLosses head_losses(const Tensor& student_hidden_BSD, const Head& student_head, const Tensor& teacher_hidden_BSD,
                       const Head& teacher_head, const Tensor& targets_BS, const Tensor& mask_BS, const HeadObjective& objective,
                       double gradient_scale, const HeadLossOptions& options) {
  const at::NoGradGuard no_grad;
  const Tensor &student_head_VD = student_head.weight(), &teacher_head_VD = teacher_head.weight();
  const bool has_teacher = teacher_hidden_BSD.defined();
  check_shapes(student_hidden_BSD, student_head_VD, teacher_hidden_BSD, teacher_head_VD, targets_BS, mask_BS);
  check_objective(objective, options, has_teacher);
  const bool is_cpu = student_hidden_BSD.device().is_cpu();

  // On a CPU masked positions are left out; on other devices their number is unknown without waiting, so they are computed and then
  // cleared.
  Tensor valid_P = mask_BS.reshape({-1}).to(at::kBool), kept, targets_P = targets_BS.reshape({-1});
  if (is_cpu) {
    kept = valid_P.nonzero().squeeze(1);
    if (kept.numel() == valid_P.numel()) kept = Tensor();
    if (kept.defined()) targets_P = targets_P.index_select(0, kept);
    valid_P = Tensor();
    check_targets(targets_P, student_head_VD.size(0));
  }
  const bool has_double =
      student_hidden_BSD.scalar_type() == at::kDouble || student_head_VD.scalar_type() == at::kDouble ||
      (has_teacher && (teacher_hidden_BSD.scalar_type() == at::kDouble || teacher_head_VD.scalar_type() == at::kDouble));
  const bool has_kernel = has_cuda_kernels(student_hidden_BSD) && !has_double && options.added.empty();
  std::optional<at::ScalarType> logits_type;
  if (has_kernel) logits_type = kernel_logits_type(options, student_head_VD, teacher_head_VD);
  // Beside float64, and for plain forms, both are tiles of whole rows: packed columns are float32.
  const auto head_of = [&](const Head& head) { return has_double || !options.added.empty() ? Head(head.weight()) : head; };
  Logits student(student_hidden_BSD, head_of(student_head), kept, logits_type), teacher;
  if (has_teacher) teacher = Logits(teacher_hidden_BSD, head_of(teacher_head), kept, logits_type);
  const bool has_cpu_form = is_cpu && options.added.empty();
  const auto run_tile = has_cpu_form ? head_loss_tile_cpu : has_kernel ? cuda_backend().head_loss_tile : head_loss_tile_aten;
  const double tile_scale = logits_gradient_scale(objective, options, is_cpu ? at::kFloat : student_head_VD.scalar_type(), gradient_scale);

  HeadLosses losses;
  const auto num_added = static_cast<int64_t>(options.added.size());
  losses.sums = at::zeros({kNumHeadSums + num_added}, student_hidden_BSD.options().dtype(at::kDouble));
  if (!has_teacher) losses.sums.narrow(0, 1, kNumHeadSums - 1).fill_(std::numeric_limits<double>::quiet_NaN());
  Tensor gradient_PD;
  if (options.with_gradient) {
    losses.grad_student_hidden_BSD = at::zeros(student_hidden_BSD.sizes(), student_hidden_BSD.options());
    gradient_PD = losses.grad_student_hidden_BSD.view({-1, student_hidden_BSD.size(2)});
  }
  const int64_t positions = student.positions();
  const auto element_size = static_cast<int64_t>(at::elementSize(student.dtype()));
  const auto backend = has_cpu_form ? HeadBackend::cpu : has_kernel ? HeadBackend::cuda_kernel : HeadBackend::aten;
  const int64_t chosen = options.tile_positions > 0
                             ? options.tile_positions
                             : head_tile(backend, student_head_VD.size(0), element_size, options.num_callers).positions;
  const int64_t step = std::min(chosen, std::max<int64_t>(positions, 1));
  for (int64_t begin = 0; begin < positions; begin += step) {
    const int64_t size = std::min(step, positions - begin);
    // Float32 logits become float64 ones beside a student in float64, tile by tile.
    const bool in_columns = has_cpu_form && (!has_teacher || teacher.dtype() == student.dtype());
    Tensor teacher_PV;
    if (has_teacher) teacher_PV = in_columns ? teacher.room(size) : teacher.tile(begin, size).to(student.dtype());
    const HeadLossTile tile{.student_PV = in_columns ? student.room(size) : student.tile(begin, size),
                            .teacher_PV = teacher_PV,
                            .targets_P = targets_P.narrow(0, begin, size).contiguous(),
                            .valid_P = valid_P.defined() ? valid_P.narrow(0, begin, size) : Tensor(),
                            .objective = objective,
                            .options = options,
                            .gradient_scale = tile_scale,
                            .sums = losses.sums};
    Tensor tile_PD;
    if (in_columns) {
      tile_PD = run_columns(student, has_teacher ? &teacher : nullptr, begin, tile);
    } else {
      run_tile(tile);
      if (options.with_gradient) tile_PD = student.backward(tile.student_PV);
    }
    if (!options.with_gradient) continue;
    if (tile_scale != gradient_scale) tile_PD.mul_(gradient_scale / tile_scale);
    if (kept.defined()) {
      gradient_PD.index_copy_(0, kept.narrow(0, begin, size), tile_PD.to(gradient_PD.scalar_type()));
    } else {
      gradient_PD.narrow(0, begin, size).copy_(tile_PD);
    }
  }
  return losses;
}

}  // namespace distil_xlstm::ops
