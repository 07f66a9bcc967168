#include "distill/alignment.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"

namespace distil_xlstm::distill {
namespace {

using namespace config;  // NOLINT(google-build-using-namespace): the enums of [distill.alignment]
constexpr int64_t kB = 3, kS = 5, kD = 7, kLayers = 7, kBlocks = 3;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// States of both models, with what the teacher would collect for `alignment`.
struct Case {
  student::StudentOutput student;
  teacher::TeacherOutput teacher;
  Tensor mask_BS;

  explicit Case(const AlignmentSettings& settings, int64_t blocks = kBlocks, int64_t layers = kLayers, at::ScalarType dtype = at::kDouble) {
    at::manual_seed(5);
    const auto options = at::TensorOptions(dtype);
    for (int64_t k = 0; k < blocks; ++k) student.layer_outputs_BSD.push_back(at::randn({kB, kS, kD}, options).requires_grad_(true));
    student.final_hidden_BSD = student.layer_outputs_BSD.back();
    student.last_hidden_BSD = at::randn({kB, kS, kD}, options).requires_grad_(true);
    for (int64_t l = 0; l < layers; ++l) teacher.hidden_BSD.push_back(at::randn({kB, kS, kD}, options));
    const auto asked = Alignment(settings, layers, blocks).teacher_options();
    if (asked.collect_mean) teacher.hidden_mean_BSD = at::stack(teacher.hidden_BSD).mean(0);
    size_t begin = 0;
    for (const int64_t size : asked.group_sizes) {
      const std::vector<Tensor> group(teacher.hidden_BSD.begin() + static_cast<int64_t>(begin),
                                      teacher.hidden_BSD.begin() + static_cast<int64_t>(begin) + size);
      teacher.group_means_BSD.push_back(at::stack(group).mean(0));
      begin += static_cast<size_t>(size);
    }
    mask_BS = at::ones({kB, kS}, at::kByte);
    mask_BS[1].narrow(0, 3, 2).fill_(0);
    mask_BS[2][0] = 0;
  }
};

// The definition, row by row and element by element.
double naive(const AlignmentSettings& settings, const Tensor& student_BSD, const Tensor& teacher_BSD, const Tensor& mask_BS) {
  const Tensor detached_BSD = student_BSD.detach();
  const auto s = detached_BSD.accessor<double, 3>(), t = teacher_BSD.accessor<double, 3>();
  const auto mask = mask_BS.accessor<uint8_t, 2>();
  double all = 0.0, all_count = 0.0, by_row = 0.0;
  for (int64_t i = 0; i < s.size(0); ++i) {
    double sum = 0.0, count = 0.0;
    for (int64_t j = 0; j < s.size(1); ++j) {
      if (mask[i][j] == 0) continue;
      double dot = 0.0, ss = 0.0, tt = 0.0, square = 0.0;
      for (int64_t d = 0; d < s.size(2); ++d) {
        dot += s[i][j][d] * t[i][j][d], ss += s[i][j][d] * s[i][j][d], tt += t[i][j][d] * t[i][j][d];
        square += (s[i][j][d] - t[i][j][d]) * (s[i][j][d] - t[i][j][d]);
      }
      sum += settings.distance == AlignmentDistance::cosine ? 1.0 - dot / std::sqrt(ss * tt) : square;
      count += settings.distance == AlignmentDistance::cosine ? 1.0 : static_cast<double>(s.size(2));
    }
    all += sum, all_count += count;
    if (count > 0) by_row += settings.distance == AlignmentDistance::cosine ? sum / count : std::sqrt(sum) / std::sqrt(count);
  }
  if (settings.scope == AlignmentScope::sequence) return by_row;
  return static_cast<double>(s.size(0)) *
         (settings.distance == AlignmentDistance::cosine ? all / all_count : std::sqrt(all) / std::sqrt(all_count));
}

TEST(Alignment, EveryKindIsItsDefinition) {
  for (const auto distance : {AlignmentDistance::frobenius, AlignmentDistance::cosine}) {
    for (const auto scope : {AlignmentScope::sequence, AlignmentScope::batch}) {
      const AlignmentSettings average{.kind = AlignmentKind::average, .distance = distance, .scope = scope};
      const Case a(average);
      EXPECT_NEAR(Alignment(average, kLayers, kBlocks).loss_sum(a.student, a.teacher, a.mask_BS).item<double>(),
                  naive(average, a.student.final_hidden_BSD, at::stack(a.teacher.hidden_BSD).mean(0), a.mask_BS), 1e-10);

      // Groups of floor(7 / 3) = 2 layers, the last takes the remainder.
      const AlignmentSettings ratio{.kind = AlignmentKind::ratio, .distance = distance, .scope = scope};
      const Case r(ratio);
      EXPECT_EQ(Alignment(ratio, kLayers, kBlocks).teacher_options().group_sizes, (std::vector<int64_t>{2, 2, 3}));
      double wanted = 0.0;
      for (size_t k = 0; k < 3; ++k) {
        Tensor mean = r.teacher.hidden_BSD[2 * k] + r.teacher.hidden_BSD[2 * k + 1];
        mean = k == 2 ? (mean + r.teacher.hidden_BSD[6]) / 3 : mean / 2;
        wanted += naive(ratio, r.student.layer_outputs_BSD[k], mean, r.mask_BS) / 3;
      }
      EXPECT_NEAR(Alignment(ratio, kLayers, kBlocks).loss_sum(r.student, r.teacher, r.mask_BS).item<double>(), wanted, 1e-10);

      const AlignmentSettings block_wise{.kind = AlignmentKind::block_wise, .distance = distance, .scope = scope};
      const Case b(block_wise, kLayers);
      wanted = 0.0;
      for (size_t k = 0; k < kLayers; ++k) {
        wanted += naive(block_wise, b.student.layer_outputs_BSD[k], b.teacher.hidden_BSD[k], b.mask_BS) / kLayers;
      }
      EXPECT_NEAR(Alignment(block_wise, kLayers, kLayers).loss_sum(b.student, b.teacher, b.mask_BS).item<double>(), wanted, 1e-10);
    }
  }
}

TEST(Alignment, GradientsMatchDifferences) {
  for (const auto distance : {AlignmentDistance::frobenius, AlignmentDistance::cosine}) {
    for (const auto scope : {AlignmentScope::sequence, AlignmentScope::batch}) {
      const AlignmentSettings settings{.kind = AlignmentKind::average, .distance = distance, .scope = scope};
      const Alignment alignment(settings, kLayers, kBlocks);
      const Case c(settings);
      alignment.loss_sum(c.student, c.teacher, c.mask_BS).backward();
      const Tensor gradient = c.student.final_hidden_BSD.grad().clone();
      const Tensor direction = at::randn_like(gradient);
      const auto shifted = [&](double step) {
        student::StudentOutput moved = c.student;
        moved.final_hidden_BSD = (c.student.final_hidden_BSD + direction * step).detach();
        return alignment.loss_sum(moved, c.teacher, c.mask_BS).item<double>();
      };
      const double difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
      EXPECT_NEAR((gradient * direction).sum().item<double>(), difference, 1e-8) << name_of(distance) << " " << name_of(scope);
    }
  }
}

// The two scopes differ in gradient: one norm a row against one norm for all.
TEST(Alignment, ScopesHaveTheirOwnGradients) {
  const AlignmentSettings by_row{.scope = AlignmentScope::sequence}, whole{.scope = AlignmentScope::batch};
  const Case a(by_row), b(whole);
  Alignment(by_row, kLayers, kBlocks).loss_sum(a.student, a.teacher, a.mask_BS).backward();
  Alignment(whole, kLayers, kBlocks).loss_sum(b.student, b.teacher, b.mask_BS).backward();
  const Tensor difference = (a.student.final_hidden_BSD - a.teacher.hidden_mean_BSD).detach() * a.mask_BS.unsqueeze(2);
  const Tensor count_B = a.mask_BS.sum(1).to(at::kDouble) * kD;
  const Tensor norm_B = difference.flatten(1).square().sum(1).sqrt();
  EXPECT_TRUE(at::allclose(a.student.final_hidden_BSD.grad(), difference / (norm_B * count_B.sqrt()).view({kB, 1, 1}), 1e-10, 1e-14));
  EXPECT_TRUE(at::allclose(b.student.final_hidden_BSD.grad(), difference * (kB / (norm_B.norm() * count_B.sum().sqrt())), 1e-10, 1e-14));
}

// Faults of the released code (docs/mathematics.md 10), one test each.

// The scale there divides by sqrt(N) twice over the batch. Here a row's loss does not depend on how many rows are beside it.
TEST(AlignmentFaults, LossARowDoesNotChangeWithBatchSize) {
  const AlignmentSettings settings;
  const Alignment alignment(settings, kLayers, kBlocks);
  const Case c(settings);
  const double all = alignment.loss_sum(c.student, c.teacher, c.mask_BS).item<double>();
  double by_row = 0.0;
  for (int64_t i = 0; i < kB; ++i) {
    student::StudentOutput student;
    teacher::TeacherOutput teacher;
    student.final_hidden_BSD = c.student.final_hidden_BSD.narrow(0, i, 1);
    teacher.hidden_mean_BSD = c.teacher.hidden_mean_BSD.narrow(0, i, 1);
    by_row += alignment.loss_sum(student, teacher, c.mask_BS.narrow(0, i, 1)).item<double>();
  }
  EXPECT_NEAR(all, by_row, 1e-12);
  for (const auto scope : {AlignmentScope::sequence, AlignmentScope::batch}) {
    const Alignment scoped({.scope = scope}, kLayers, kBlocks);
    student::StudentOutput twice;
    teacher::TeacherOutput teacher;
    twice.final_hidden_BSD = at::cat({c.student.final_hidden_BSD, c.student.final_hidden_BSD});
    teacher.hidden_mean_BSD = at::cat({c.teacher.hidden_mean_BSD, c.teacher.hidden_mean_BSD});
    EXPECT_NEAR(scoped.loss_sum(twice, teacher, at::cat({c.mask_BS, c.mask_BS})).item<double>() / (2 * kB),
                scoped.loss_sum(c.student, c.teacher, c.mask_BS).item<double>() / kB, 1e-12);
  }
}

// `average` there averages over the wrong axis: all layers are asked for, and no others.
TEST(AlignmentFaults, AverageTakesAllLayers) {
  const auto options = Alignment({.kind = AlignmentKind::average}, kLayers, kBlocks).teacher_options();
  EXPECT_TRUE(options.collect_mean);
  EXPECT_TRUE(options.group_sizes.empty());
  EXPECT_FALSE(Alignment({.kind = AlignmentKind::average}, kLayers, kBlocks).needs_layers());
}

// `ratio` there raises for its tensor ranks: it runs for every depth, and each layer belongs to exactly one group.
TEST(AlignmentFaults, RatioRunsForAnyDepth) {
  const AlignmentSettings settings{.kind = AlignmentKind::ratio};
  for (int64_t layers = 1; layers <= 9; ++layers) {
    for (int64_t blocks = 1; blocks <= layers; ++blocks) {
      const Alignment alignment(settings, layers, blocks);
      int64_t total = 0;
      for (const int64_t size : alignment.teacher_options().group_sizes) total += size;
      EXPECT_EQ(total, layers);
      const Case c(settings, blocks, layers);
      EXPECT_GT(alignment.loss_sum(c.student, c.teacher, c.mask_BS).item<double>(), 0.0);
    }
  }
}

// There the teacher's last state is normed and the student's is not: both are before the norm, or both after it.
TEST(AlignmentFaults, NormsMatchOnBothSides) {
  for (const auto kind : {AlignmentKind::average, AlignmentKind::ratio, AlignmentKind::block_wise}) {
    const AlignmentSettings before{.kind = kind}, after{.kind = kind, .state = AlignmentState::post_norm};
    const int64_t blocks = kind == AlignmentKind::block_wise ? kLayers : kBlocks;
    EXPECT_FALSE(Alignment(before, kLayers, blocks).teacher_options().post_norm_last);
    EXPECT_TRUE(Alignment(after, kLayers, blocks).teacher_options().post_norm_last);
    const Case c(before, blocks), d(after, blocks);
    Alignment(before, kLayers, blocks).loss_sum(c.student, c.teacher, c.mask_BS).backward();
    EXPECT_TRUE(c.student.final_hidden_BSD.grad().defined());
    EXPECT_FALSE(c.student.last_hidden_BSD.grad().defined());
    Alignment(after, kLayers, blocks).loss_sum(d.student, d.teacher, d.mask_BS).backward();
    EXPECT_FALSE(d.student.final_hidden_BSD.grad().defined());
    EXPECT_TRUE(d.student.last_hidden_BSD.grad().defined());
  }
}

// Padding counts there; here it changes nothing, not even when it is not finite.
TEST(AlignmentFaults, PaddingNeverMatters) {
  for (const auto distance : {AlignmentDistance::frobenius, AlignmentDistance::cosine}) {
    for (const auto scope : {AlignmentScope::sequence, AlignmentScope::batch}) {
      const AlignmentSettings settings{.distance = distance, .scope = scope};
      const Alignment alignment(settings, kLayers, kBlocks);
      Case c(settings);
      const Tensor before = alignment.loss_sum(c.student, c.teacher, c.mask_BS);
      before.backward();
      const Tensor gradient = c.student.final_hidden_BSD.grad().clone();
      const Tensor is_masked = c.mask_BS.unsqueeze(2) == 0;
      EXPECT_EQ(gradient.masked_select(is_masked).abs().max().item<double>(), 0.0);
      c.student.final_hidden_BSD = c.student.final_hidden_BSD.detach().masked_fill(is_masked, kNan).requires_grad_(true);
      c.teacher.hidden_mean_BSD.masked_fill_(is_masked, std::numeric_limits<double>::infinity());
      const Tensor after = alignment.loss_sum(c.student, c.teacher, c.mask_BS);
      after.backward();
      EXPECT_EQ(before.item<double>(), after.item<double>());
      EXPECT_TRUE(at::equal(gradient, c.student.final_hidden_BSD.grad()));
    }
  }
}

TEST(Alignment, EqualStatesGiveZeroWithoutNan) {
  for (const auto distance : {AlignmentDistance::frobenius, AlignmentDistance::cosine}) {
    for (const auto scope : {AlignmentScope::sequence, AlignmentScope::batch}) {
      const AlignmentSettings settings{.distance = distance, .scope = scope};
      Case c(settings);
      c.teacher.hidden_mean_BSD = c.student.final_hidden_BSD.detach().clone();
      const Tensor loss = Alignment(settings, kLayers, kBlocks).loss_sum(c.student, c.teacher, c.mask_BS);
      loss.backward();
      EXPECT_NEAR(loss.item<double>(), 0.0, 1e-14);
      EXPECT_LT(c.student.final_hidden_BSD.grad().abs().max().item<double>(), 1e-14);
    }
  }
}

TEST(Alignment, RowsWithoutTokensCountAsZero) {
  for (const auto distance : {AlignmentDistance::frobenius, AlignmentDistance::cosine}) {
    for (const auto scope : {AlignmentScope::sequence, AlignmentScope::batch}) {
      const AlignmentSettings settings{.distance = distance, .scope = scope};
      const Case c(settings);
      const Tensor loss = Alignment(settings, kLayers, kBlocks).loss_sum(c.student, c.teacher, at::zeros({kB, kS}, at::kByte));
      loss.backward();
      EXPECT_EQ(loss.item<double>(), 0.0);
      EXPECT_EQ(c.student.final_hidden_BSD.grad().abs().max().item<double>(), 0.0);
    }
  }
}

TEST(Alignment, HalfPrecisionStatesAreComparedInFloat) {
  const AlignmentSettings settings;
  const Case exact(settings);
  Case half(settings);
  half.teacher.hidden_mean_BSD = half.teacher.hidden_mean_BSD.to(at::kBFloat16);
  half.student.final_hidden_BSD = half.student.final_hidden_BSD.detach().to(at::kBFloat16).requires_grad_(true);
  const Alignment alignment(settings, kLayers, kBlocks);
  const Tensor loss = alignment.loss_sum(half.student, half.teacher, half.mask_BS);
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  const double wanted = alignment.loss_sum(exact.student, exact.teacher, exact.mask_BS).item<double>();
  EXPECT_NEAR(loss.item<double>(), wanted, 1e-2 * wanted);
  loss.backward();
  EXPECT_EQ(half.student.final_hidden_BSD.grad().scalar_type(), at::kBFloat16);
}

TEST(Alignment, TargetIsPassedOn) {
  EXPECT_EQ(Alignment({.target = LayerState::attention_output}, 4, 2).teacher_options().target, config::LayerState::attention_output);
  EXPECT_EQ(Alignment({.target = LayerState::block_output}, 4, 2).teacher_options().target, config::LayerState::block_output);
}

TEST(Alignment, RefusesDepthsAndShapesThatDoNotFit) {
  EXPECT_THROW(Alignment({.kind = AlignmentKind::block_wise}, 4, 2), ConfigError);
  EXPECT_THROW(Alignment({.kind = AlignmentKind::ratio}, 2, 4), ConfigError);
  EXPECT_THROW(Alignment({.target = LayerState::attention_output, .state = AlignmentState::post_norm}, 4, 2), ConfigError);
  Case c{AlignmentSettings{}};
  const Alignment alignment({}, kLayers, kBlocks);
  EXPECT_THROW((void)alignment.loss_sum(c.student, c.teacher, at::ones({kB, kS + 1}, at::kByte)), ShapeError);
  c.teacher.hidden_mean_BSD = at::zeros({kB, kS, kD + 1}, at::kDouble);
  EXPECT_THROW((void)alignment.loss_sum(c.student, c.teacher, c.mask_BS), ShapeError);
  const Case r({.kind = AlignmentKind::ratio});
  EXPECT_THROW((void)Alignment({.kind = AlignmentKind::ratio}, kLayers, 2).loss_sum(r.student, r.teacher, r.mask_BS), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::distill
