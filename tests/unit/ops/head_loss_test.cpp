#include "ops/head_loss.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/json.h"
#include "ops/cuda_backend.h"
#include "ops/head_loss_tile.h"
#include "support/devices.h"
#include "support/source_directory.h"

namespace distil_xlstm::ops {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

using testing::devices;

double relative_error(const Tensor& out, const Tensor& reference) {
  const Tensor a = out.cpu().to(at::kDouble), b = reference.cpu().to(at::kDouble);
  const double norm = b.norm().item<double>();
  return (a - b).norm().item<double>() / (norm > 0.0 ? norm : 1.0);
}

struct Inputs {
  Tensor student_BSD, student_head, teacher_BSD, teacher_head, targets_BS, mask_BS;

  Inputs(int64_t B, int64_t S, int64_t V, at::Device device = at::kCPU, at::ScalarType dtype = at::kDouble, double scale = 1.0) {
    at::manual_seed(static_cast<uint64_t>(1000 * B + 10 * S + V));
    const int64_t student_width = 6, teacher_width = 5;
    const auto random = [&](at::IntArrayRef shape) { return at::randn(shape, at::kDouble).to(at::kFloat).to(device).to(dtype); };
    student_BSD = random({B, S, student_width});
    student_head = random({V, student_width}) * scale;
    teacher_BSD = random({B, S, teacher_width});
    teacher_head = random({V, teacher_width}) * scale;
    targets_BS = at::randint(V, {B, S}, at::kLong).to(device);
    mask_BS = (at::rand({B, S}) < 0.7).to(at::kByte).to(device);
    mask_BS[0][0] = 1;
  }

  [[nodiscard]] HeadLosses run(const HeadObjective& objective, double gradient_scale = 1.0, const HeadLossOptions& options = {}) const {
    return head_losses(student_BSD, student_head, teacher_BSD, teacher_head, targets_BS, mask_BS, objective, gradient_scale, options);
  }
};

struct Reference {
  Tensor sums, gradient;
};

// The definitions over full logits in float64, the gradient by autograd. JSD through log m itself.
Reference reference(const Inputs& in, const HeadObjective& options, double gradient_scale = 1.0) {
  const auto on_host = [](const Tensor& x) { return x.detach().cpu().to(at::kDouble); };
  const Tensor hidden = on_host(in.student_BSD).flatten(0, 1).requires_grad_(true);
  const Tensor s = hidden.matmul(on_host(in.student_head).t()),
               t = on_host(in.teacher_BSD).flatten(0, 1).matmul(on_host(in.teacher_head).t());
  const Tensor target = in.targets_BS.cpu().flatten().unsqueeze(1), mask = in.mask_BS.cpu().flatten().to(at::kDouble);
  const double T = options.temperature, b = options.jsd_beta;
  const auto kl = [](const Tensor& log_p, const Tensor& log_q) { return (log_p.exp() * (log_p - log_q)).sum(1); };
  const Tensor lq = (s / T).log_softmax(1), lp = (t / T).log_softmax(1), lq1 = s.log_softmax(1), lp1 = t.log_softmax(1);
  Tensor divergence = options.divergence == Divergence::forward_kl ? kl(lp, lq) : kl(lq, lp);
  if (options.divergence == Divergence::jsd) {
    const Tensor log_m = at::logaddexp(lp + std::log(b), lq + std::log(1 - b));
    divergence = kl(lp, log_m) * b + kl(lq, log_m) * (1 - b);
  }
  const Tensor ce = -lq1.gather(1, target).squeeze(1);
  Tensor r = s - t * options.mse_scale;
  if (options.mse_centered) r = r - r.mean(1, true);
  const Tensor soft = at::one_hot(target.squeeze(1), s.size(1)) * options.label_mix + lp1.exp() * (1 - options.label_mix);
  const Tensor parts = at::stack({ce, divergence * (T * T), kl(lp1, lq1), -lp1.gather(1, target).squeeze(1),
                                  (s.argmax(1) == t.argmax(1)).to(at::kDouble), r.square().mean(1), -(soft * lq1).sum(1)});
  const Tensor sums = (parts * mask).sum(1);
  const Tensor loss = sums[kCe] * options.ce_weight + sums[kKd] * options.kd_weight + sums[kMse] * options.mse_weight +
                      sums[kMixedCe] * options.label_weight;
  loss.backward();
  return {sums.detach(), hidden.grad().view(in.student_BSD.sizes()) * gradient_scale};
}

// The gradient of the JSD of nearly disjoint distributions is far below the terms it consists of: rounding is measured against T (q - p)
// there.
double gradient_error(const HeadLosses& got, const Reference& wanted, const Inputs& in, HeadObjective options, double gradient_scale) {
  double norm = wanted.gradient.norm().item<double>();
  if (options.divergence == Divergence::jsd) {
    options.divergence = Divergence::forward_kl;
    norm = std::max(norm, reference(in, options, gradient_scale).gradient.norm().item<double>());
  }
  return (got.grad_student_hidden_BSD.cpu().to(at::kDouble) - wanted.gradient).norm().item<double>() / norm;
}

std::vector<HeadObjective> all_options() {
  std::vector<HeadObjective> all;
  for (const auto divergence : {Divergence::forward_kl, Divergence::reverse_kl, Divergence::jsd}) {
    for (const double T : {0.1, 0.7, 1.0, 2.0, 10.0}) {
      all.push_back({.kd_weight = 1.0, .temperature = T, .divergence = divergence, .jsd_beta = 0.3});
      all.push_back({.ce_weight = 0.3,
                     .kd_weight = 0.5,
                     .mse_weight = 0.2,
                     .label_weight = 0.4,
                     .label_mix = 0.25,
                     .temperature = T,
                     .divergence = divergence,
                     .mse_scale = 0.6,
                     .mse_centered = T > 1.0});
    }
  }
  all.push_back({.ce_weight = 1.0, .temperature = 2.0});
  all.push_back({.mse_weight = 1.0, .mse_scale = 0.1});
  all.push_back({.mse_weight = 1.0, .mse_scale = 0.1, .mse_centered = true});
  all.push_back({.label_weight = 1.0, .label_mix = 0.0, .temperature = 3.0});
  all.push_back({.label_weight = 1.0, .label_mix = 1.0});
  return all;
}

TEST(HeadLoss, FullLogitsGiveTheSameInFloat64) {
  for (const at::Device device : devices()) {
    for (const auto& [B, S, V] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 7}, {1, 17, 11}, {2, 5, 513}}) {
      const Inputs in(B, S, V, device);
      for (const HeadObjective& options : all_options()) {
        const Reference wanted = reference(in, options, 0.125);
        const HeadLosses got = in.run(options, 0.125, {.tile_positions = 3});
        EXPECT_LT(relative_error(got.sums, wanted.sums), 1e-10) << "V " << V << " T " << options.temperature;
        EXPECT_LT(gradient_error(got, wanted, in, options, 0.125), 1e-10) << "V " << V << " T " << options.temperature;
      }
    }
  }
}

TEST(HeadLoss, FullLogitsGiveTheSameInFloat32) {
  for (const at::Device device : devices()) {
    for (const auto& [B, S, V] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 7}, {1, 17, 11}, {1, 19, 513}, {1, 3, 1031}}) {
      const Inputs in(B, S, V, device, at::kFloat);
      for (const HeadObjective& options : all_options()) {
        const Reference wanted = reference(in, options);
        const HeadLosses got = in.run(options);
        EXPECT_EQ(got.grad_student_hidden_BSD.scalar_type(), at::kFloat);
        EXPECT_EQ(got.sums.scalar_type(), at::kDouble);
        // Rounding of the logits is divided by T as they are.
        const double tolerance = 1e-5 / std::min(options.temperature, 1.0);
        EXPECT_LT(relative_error(got.sums, wanted.sums), 1e-5) << "V " << V << " T " << options.temperature;
        EXPECT_LT(gradient_error(got, wanted, in, options, 1.0), tolerance) << "V " << V << " T " << options.temperature;
      }
    }
  }
}

TEST(HeadLoss, HalfPrecisionHeads) {
  for (const at::Device device : devices()) {
    for (const auto dtype : {at::kBFloat16, at::kHalf}) {
      const Inputs in(2, 17, 513, device, dtype);
      const HeadObjective options{.ce_weight = 0.3, .kd_weight = 0.7, .temperature = 2.0};
      const Reference wanted = reference(in, options, 64.0);
      const HeadLosses got = in.run(options, 64.0);
      EXPECT_EQ(got.grad_student_hidden_BSD.scalar_type(), dtype);
      // The CUDA kernel's logits have the products' type in training; elsewhere, and where models are compared, they are float32.
      const bool has_half_logits = device.is_cuda() && cuda_backend().head_loss_tile != nullptr;
      EXPECT_LT(relative_error(got.sums, wanted.sums), has_half_logits ? 1e-3 : 1e-5);
      EXPECT_LT(relative_error(got.grad_student_hidden_BSD, wanted.gradient), 1e-2);
      EXPECT_LT(relative_error(in.run(options, 64.0, {.with_gradient = false}).sums, wanted.sums), 1e-5);
    }
  }
}

// The plain form on any device and the CPU kernel are one function.
TEST(HeadLoss, AtenTileEqualsKernelTile) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    at::manual_seed(9);
    const int64_t P = 19, V = 517;
    const Tensor student = (at::randn({P, V}, at::kDouble) * 4).to(dtype), teacher = (at::randn({P, V}, at::kDouble) * 4).to(dtype);
    const Tensor targets = at::randint(V, {P}, at::kLong);
    for (const HeadObjective& options : all_options()) {
      const Tensor a = student.clone(), b = student.clone();
      const Tensor sums_a = at::zeros({kNumHeadSums}, at::kDouble), sums_b = at::zeros({kNumHeadSums}, at::kDouble);
      head_loss_tile_cpu({a, teacher, targets, {}, options, {}, 0.5, sums_a});
      head_loss_tile_aten({b, teacher, targets, {}, options, {}, 0.5, sums_b});
      const double tolerance = dtype == at::kDouble ? 1e-10 : 1e-5;
      EXPECT_LT(relative_error(sums_a, sums_b), tolerance);
      // As in gradient_error.
      Tensor terms = b;
      if (options.divergence == Divergence::jsd) {
        HeadObjective forward = options;
        forward.divergence = Divergence::forward_kl;
        terms = student.clone();
        head_loss_tile_aten({terms, teacher, targets, {}, forward, {}, 0.5, at::zeros({kNumHeadSums}, at::kDouble)});
      }
      const double error = (a - b).norm().item<double>() / std::max(b.norm().item<double>(), terms.norm().item<double>());
      EXPECT_LT(error, tolerance) << "T " << options.temperature << " divergence " << static_cast<int>(options.divergence);
    }
  }
}

TEST(HeadLoss, AtenTileLeavesMaskedPositionsOut) {
  at::manual_seed(10);
  const Tensor student = at::randn({6, 11}), teacher = at::randn({6, 11});
  const Tensor targets = at::randint(11, {6}, at::kLong), valid = at::tensor({1, 0, 1, 1, 0, 1}).to(at::kBool);
  const Tensor kept = valid.nonzero().squeeze(1);
  const HeadObjective options{.ce_weight = 0.5, .kd_weight = 0.5, .temperature = 2.0};
  const Tensor few = student.index_select(0, kept);
  const Tensor sums_few = at::zeros({kNumHeadSums}, at::kDouble), sums_all = at::zeros({kNumHeadSums}, at::kDouble);
  head_loss_tile_aten({few, teacher.index_select(0, kept), targets.index_select(0, kept), {}, options, {}, 1.0, sums_few});
  const Tensor all = student.masked_fill(valid.logical_not().unsqueeze(1), kNan);
  head_loss_tile_aten({all, teacher, targets.masked_fill(valid.logical_not(), -100), valid, options, {}, 1.0, sums_all});
  EXPECT_LT(relative_error(sums_all, sums_few), 1e-7);
  EXPECT_TRUE(at::equal(all.index_select(0, kept), few));
  EXPECT_EQ(all.index_select(0, valid.logical_not().nonzero().squeeze(1)).abs().max().item<float>(), 0.0F);
}

TEST(HeadLoss, GoldenValuesOfPyTorch) {
  const json golden = read_json(golden_directory() / "distill_losses.json");
  const auto size = [&](const char* key) { return golden["sizes"][key].get<int64_t>(); };
  const auto values = [](const json& list, at::IntArrayRef shape) {
    return at::tensor(list.get<std::vector<double>>(), at::kDouble).view(shape);
  };
  const int64_t B = size("B"), S = size("S"), V = size("V");
  for (const at::Device device : devices()) {
    Inputs in(B, S, V, device);
    in.student_BSD = values(golden["student_hidden"], {B, S, size("D_S")}).to(device);
    in.student_head = values(golden["student_head"], {V, size("D_S")}).to(device);
    in.teacher_BSD = values(golden["teacher_hidden"], {B, S, size("D_T")}).to(device);
    in.teacher_head = values(golden["teacher_head"], {V, size("D_T")}).to(device);
    in.targets_BS = values(golden["targets"], {B, S}).to(at::kLong).to(device);
    in.mask_BS = values(golden["mask"], {B, S}).to(at::kByte).to(device);
    for (const json& row : golden["cases"]) {
      const json& given = row["options"];
      HeadObjective options;
      options.ce_weight = get_or(given, "ce_weight", 0.0);
      options.kd_weight = get_or(given, "kd_weight", 0.0);
      options.mse_weight = get_or(given, "mse_weight", 0.0);
      options.label_weight = get_or(given, "label_weight", 0.0);
      options.label_mix = get_or(given, "label_mix", 0.0);
      options.temperature = get_or(given, "temperature", 1.0);
      options.jsd_beta = get_or(given, "jsd_beta", 0.5);
      options.mse_scale = get_or(given, "mse_scale", 1.0);
      options.mse_centered = get_or(given, "mse_centered", false);
      const auto divergence = get_or(given, "divergence", std::string("forward_kl"));
      options.divergence = divergence == "jsd"          ? Divergence::jsd
                           : divergence == "reverse_kl" ? Divergence::reverse_kl
                                                        : Divergence::forward_kl;
      const HeadLosses got = in.run(options);
      EXPECT_LT(relative_error(got.sums, values(row["sums"], {kNumHeadSums})), 1e-10) << given;
      EXPECT_LT(relative_error(got.grad_student_hidden_BSD, values(row["gradient"], in.student_BSD.sizes())), 1e-10) << given;
    }
  }
}

TEST(HeadLoss, EqualLogitsHaveNoDivergence) {
  for (const at::Device device : devices()) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      Inputs in(2, 9, 513, device, dtype);
      in.teacher_BSD = in.student_BSD;
      in.teacher_head = in.student_head;
      for (const auto divergence : {Divergence::forward_kl, Divergence::reverse_kl, Divergence::jsd}) {
        for (const double T : {0.5, 1.0, 2.0}) {
          const HeadLosses got = in.run({.kd_weight = 1.0, .temperature = T, .divergence = divergence});
          const double limit = dtype == at::kDouble ? 1e-13 : 1e-5;
          EXPECT_NEAR(got.sums[kKd].item<double>(), 0.0, limit);
          EXPECT_NEAR(got.sums[kKlAt1].item<double>(), 0.0, limit);
          EXPECT_LT(got.grad_student_hidden_BSD.abs().max().item<double>(), limit);
          EXPECT_EQ(got.sums[kAgreement].item<double>(), in.mask_BS.sum().item<double>());
          EXPECT_NEAR(got.sums[kCe].item<double>(), got.sums[kTeacherNll].item<double>(), 1e-4 * limit + 1e-9);
          EXPECT_EQ(got.sums[kMse].item<double>(), 0.0);
        }
      }
    }
  }
}

// loss at alpha 0 is cross-entropy, whatever the temperature, and the mixed label at 1 is the same.
TEST(HeadLoss, AlphaZeroIsCrossEntropy) {
  const Inputs in(2, 9, 33);
  const auto plain = in.run({.ce_weight = 1.0});
  const Tensor hidden = in.student_BSD.clone().requires_grad_(true);
  const Tensor nll =
      at::nll_loss_nd(hidden.matmul(in.student_head.t()).log_softmax(2).flatten(0, 1), in.targets_BS.flatten(), {}, at::Reduction::None);
  const Tensor wanted = (nll * in.mask_BS.flatten()).sum();
  wanted.backward();
  for (const auto& options :
       {HeadObjective{.ce_weight = 1.0}, {.ce_weight = 1.0, .temperature = 4.0}, {.label_weight = 1.0, .label_mix = 1.0}}) {
    const auto got = in.run(options);
    EXPECT_NEAR(got.sums[kCe].item<double>(), wanted.item<double>(), 1e-10);
    EXPECT_LT(relative_error(got.grad_student_hidden_BSD, hidden.grad()), 1e-12);
  }
}

// d kd / d logits = T (q - p): seen directly with an identity as the head.
TEST(HeadLoss, ForwardKlGradientIsTTimesTheDifference) {
  for (const at::Device device : devices()) {
    const int64_t V = 13;
    at::manual_seed(4);
    const auto options = at::TensorOptions(at::kDouble).device(device);
    const Tensor s = at::randn({1, 4, V}, options), t = at::randn({1, 4, V}, options), eye = at::eye(V, options);
    for (const double T : {0.5, 1.0, 3.0}) {
      const auto got = head_losses(s, eye, t, eye, at::zeros({1, 4}, options.dtype(at::kLong)), at::ones({1, 4}, options.dtype(at::kByte)),
                                   {.kd_weight = 1.0, .temperature = T}, 2.0);
      EXPECT_LT(relative_error(got.grad_student_hidden_BSD, ((s / T).softmax(2) - (t / T).softmax(2)) * (2.0 * T)), 1e-12);
    }
  }
}

// Adding a constant to a row of logits changes nothing but the plain MSE.
TEST(HeadLoss, ShiftsOfLogitsDoNotMatter) {
  for (const at::Device device : devices()) {
    const int64_t V = 21;
    at::manual_seed(6);
    const auto options = at::TensorOptions(at::kDouble).device(device);
    const Tensor s = at::randn({1, 5, V}, options), t = at::randn({1, 5, V}, options), eye = at::eye(V, options);
    const Tensor targets = at::randint(V, {1, 5}, options.dtype(at::kLong)), mask = at::ones({1, 5}, options.dtype(at::kByte));
    for (const auto divergence : {Divergence::forward_kl, Divergence::reverse_kl, Divergence::jsd}) {
      const HeadObjective loss{.ce_weight = 0.2,
                               .kd_weight = 0.8,
                               .mse_weight = 0.5,
                               .label_weight = 0.1,
                               .label_mix = 0.5,
                               .temperature = 2.0,
                               .divergence = divergence,
                               .mse_centered = true};
      const auto before = head_losses(s, eye, t, eye, targets, mask, loss, 1.0);
      const auto after = head_losses(s + 50.0, eye, t - 31.0, eye, targets, mask, loss, 1.0);
      EXPECT_LT(relative_error(after.sums, before.sums), 1e-10);
      EXPECT_LT(relative_error(after.grad_student_hidden_BSD, before.grad_student_hidden_BSD), 1e-10);
    }
  }
}

// Heads laid out for a CPU's products, over whole and broken parts of the vocabulary, beside the definitions in float64.
TEST(HeadLoss, PackedHeadsGiveTheSame) {
  if (!PackedMatrix::supports(at::ones({1, 1}))) GTEST_SKIP() << "LibTorch has no MKL";
  for (const int64_t V : {int64_t{2}, int64_t{7}, kHeadColumns - 1, kHeadColumns, kHeadColumns + 1, 3 * kHeadColumns + 517}) {
    const Inputs in(2, 9, V, at::kCPU, at::kFloat);
    const Head student = Head::packed(in.student_head, true), teacher = Head::packed(in.teacher_head, false);
    ASSERT_NE(student.columns(), nullptr);
    for (const HeadObjective& options : all_options()) {
      const auto run = [&](const Head& student_head, const Head& teacher_head) {
        return head_losses(in.student_BSD, student_head, in.teacher_BSD, teacher_head, in.targets_BS, in.mask_BS, options, 0.125,
                           {.tile_positions = 5});
      };
      const Reference wanted = reference(in, options, 0.125);
      // The other way about the student's head has no layout for the gradient's product and takes the tensor.
      for (const auto& got : {run(student, teacher), run(Head::packed(in.student_head, false), in.teacher_head)}) {
        EXPECT_LT(relative_error(got.sums, wanted.sums), 1e-5) << "V " << V << " T " << options.temperature;
        EXPECT_LT(gradient_error(got, wanted, in, options, 0.125), 1e-5) << "V " << V << " T " << options.temperature;
      }
    }
  }
}

// The head's own type is kept beside its packed copies: beside float64 it is that which counts.
TEST(HeadLoss, PackedHeadsOfOtherTypes) {
  const int64_t V = kHeadColumns + 9;
  Inputs in(2, 9, V, at::kCPU, at::kFloat);
  for (Tensor* head : {&in.student_head, &in.teacher_head}) {
    *head = head->to(at::kBFloat16).to(at::kFloat);
    head->masked_fill_(head->abs() < 1e-3, 0.0);  // float16 holds the rest exactly too
  }
  const HeadObjective options = all_options().front();
  const Reference wanted = reference(in, options, 0.125);
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf, at::kFloat}) {
    const Tensor student_VD = in.student_head.to(type), teacher_VD = in.teacher_head.to(type);
    ASSERT_TRUE(student_VD.to(at::kFloat).equal(in.student_head) && teacher_VD.to(at::kFloat).equal(in.teacher_head));
    const Head student = Head::packed(student_VD, true), teacher = Head::packed(teacher_VD, false);
    if (student.columns() != nullptr) {
      EXPECT_EQ(student.weight().scalar_type(), type);
    }
    const auto expect_same = [&](const Tensor& student_BSD, const Head& student_head, const Tensor& teacher_BSD, const Head& teacher_head) {
      const auto got = head_losses(student_BSD, student_head, teacher_BSD, teacher_head, in.targets_BS, in.mask_BS, options, 0.125);
      EXPECT_LT(relative_error(got.sums, wanted.sums), 1e-5) << c10::toString(type);
      EXPECT_LT(gradient_error(got, wanted, in, options, 0.125), 1e-5) << c10::toString(type);
    };
    expect_same(in.student_BSD, student, in.teacher_BSD, teacher);
    expect_same(in.student_BSD.to(at::kDouble), student, in.teacher_BSD, teacher);
    expect_same(in.student_BSD, student, in.teacher_BSD.to(at::kDouble), teacher);
    expect_same(in.student_BSD, in.student_head.to(at::kDouble), in.teacher_BSD, teacher);
    expect_same(in.student_BSD, student, in.teacher_BSD, in.teacher_head.to(at::kDouble));
  }
}

// The largest logits come last, so that every part of the vocabulary lowers what was summed before it.
TEST(HeadLoss, MaximaMayRiseAlongTheVocabulary) {
  const int64_t V = 4 * kHeadColumns + 3;
  Inputs in(1, 5, V, at::kCPU, at::kFloat);
  const Tensor rise_V1 = at::linspace(0.0, 20.0, V, in.student_head.options()).unsqueeze(1);
  in.student_BSD.select(2, 0).fill_(1.0);
  in.teacher_BSD.select(2, 0).fill_(0.5);
  in.student_head.narrow(1, 0, 1).copy_(rise_V1);
  in.teacher_head.narrow(1, 0, 1).copy_(rise_V1);
  // Sixteenths: the logits are exact in float32 whatever the order of their sums, whose rounding a small temperature would enlarge.
  for (const Tensor& x : {in.student_BSD, in.student_head, in.teacher_BSD, in.teacher_head}) x.copy_((x * 16).round() / 16);
  for (const HeadObjective& options : all_options()) {
    const Reference wanted = reference(in, options);
    const HeadLosses got = in.run(options);
    EXPECT_LT(relative_error(got.sums, wanted.sums), 1e-5) << "T " << options.temperature;
    EXPECT_LT(gradient_error(got, wanted, in, options, 1.0), 1e-5) << "T " << options.temperature;
  }
}

TEST(HeadLoss, CallersShareTheMemoryOfTheirTiles) {
  for (const int64_t vocab_size : {512, 49152, 151936}) {
    for (const int64_t callers : {1, 2, 4, 16}) {
      const auto tile = head_tile(HeadBackend::cpu, vocab_size, 4, callers);
      EXPECT_GE(tile.positions, 1);
      EXPECT_LE(callers * tile.size_bytes(), std::max(int64_t{256} << 20, callers * (int64_t{8} << 20))) << vocab_size << " " << callers;
    }
  }
  const auto half = at::ones({4, 2}, at::kBFloat16), single = at::ones({4, 2});
  EXPECT_EQ(product_head(half).scalar_type(), at::kFloat);
  EXPECT_TRUE(product_head(single).is_same(single)) << "nothing to convert, nothing to copy";
}

TEST(HeadLoss, TileSizeDoesNotMatter) {
  for (const at::Device device : devices()) {
    const Inputs in(3, 17, 67, device);
    const HeadObjective options{.ce_weight = 0.5, .kd_weight = 0.5, .temperature = 2.0};
    const auto whole = in.run(options);
    for (const int64_t tile : {1, 2, 7, 16, 50, 51, 1000}) {
      const auto tiled = in.run(options, 1.0, {.tile_positions = tile});
      EXPECT_LT(relative_error(tiled.sums, whole.sums), 1e-13) << tile;
      EXPECT_LT(relative_error(tiled.grad_student_hidden_BSD, whole.grad_student_hidden_BSD), 1e-13) << tile;
    }
  }
}

// Padding counts in the released code's KL. Here masked positions change nothing, whatever stands there, and have no gradient.
TEST(HeadLoss, MaskedPositionsNeverMatter) {
  for (const at::Device device : devices()) {
    for (const double bad : {kNan, std::numeric_limits<double>::infinity(), 1e30}) {
      Inputs in(3, 8, 29, device);
      const HeadObjective options{
          .ce_weight = 0.2, .kd_weight = 0.3, .mse_weight = 0.2, .label_weight = 0.3, .label_mix = 0.5, .temperature = 2.0};
      const auto before = in.run(options);
      const Tensor is_masked = in.mask_BS == 0;
      ASSERT_GT(is_masked.sum().item<int64_t>(), 0);
      in.student_BSD = in.student_BSD.masked_fill(is_masked.unsqueeze(2), bad);
      in.teacher_BSD = in.teacher_BSD.masked_fill(is_masked.unsqueeze(2), bad);
      in.targets_BS = in.targets_BS.masked_fill(is_masked, -100);
      const auto after = in.run(options);
      EXPECT_TRUE(at::equal(before.sums, after.sums));
      EXPECT_TRUE(at::equal(before.grad_student_hidden_BSD, after.grad_student_hidden_BSD));
      EXPECT_EQ(after.grad_student_hidden_BSD.masked_select(is_masked.unsqueeze(2)).abs().max().item<double>(), 0.0);
    }
  }
}

TEST(HeadLoss, VocabularyOfOneTokenHasNothingToLearn) {
  for (const at::Device device : devices()) {
    const Inputs in(3, 4, 1, device);
    const auto got = in.run({.ce_weight = 0.5, .kd_weight = 0.5, .label_weight = 0.5, .label_mix = 0.3, .temperature = 2.0});
    EXPECT_NEAR(got.sums[kCe].item<double>(), 0.0, 1e-14);
    EXPECT_NEAR(got.sums[kKd].item<double>(), 0.0, 1e-14);
    EXPECT_EQ(got.sums[kAgreement].item<double>(), in.mask_BS.sum().item<double>());
    EXPECT_LT(got.grad_student_hidden_BSD.abs().max().item<double>(), 1e-14);
  }
}

TEST(HeadLoss, EmptyMaskGivesZeros) {
  for (const at::Device device : devices()) {
    Inputs in(2, 3, 7, device);
    in.mask_BS.zero_();
    const auto got = in.run({.ce_weight = 1.0, .kd_weight = 1.0});
    EXPECT_EQ(got.sums.abs().max().item<double>(), 0.0);
    EXPECT_EQ(got.grad_student_hidden_BSD.abs().max().item<double>(), 0.0);
  }
}

TEST(HeadLoss, WithoutTeacherOnlyCrossEntropyCounts) {
  for (const at::Device device : devices()) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      Inputs in(2, 9, 33, device, dtype);
      const auto with = in.run({.ce_weight = 0.5});
      in.teacher_BSD = in.teacher_head = Tensor();
      const auto without = in.run({.ce_weight = 0.5});
      EXPECT_NEAR(without.sums[kCe].item<double>(), with.sums[kCe].item<double>(), 1e-9);
      EXPECT_LT(relative_error(without.grad_student_hidden_BSD, with.grad_student_hidden_BSD), dtype == at::kDouble ? 1e-13 : 1e-6);
      for (int i = kKd; i < kNumHeadSums; ++i) EXPECT_TRUE(std::isnan(without.sums[i].item<double>())) << i;
      EXPECT_THROW((void)in.run({.kd_weight = 0.5}), ValueError);
      EXPECT_THROW((void)in.run({.mse_weight = 0.5}), ValueError);
      EXPECT_THROW((void)in.run({.label_weight = 0.5}), ValueError);
      in.mask_BS.zero_();
      EXPECT_EQ(in.run({.ce_weight = 0.5}).sums[kCe].item<double>(), 0.0);
    }
  }
}

// A term from outside: the sum of the squares of the student's probabilities.
const HeadTerm& added_term() {
  static const HeadTerm& term = [&]() -> const HeadTerm& {
    add_head_term({.name = "sum_of_squares", .needs_teacher = false, .weight = nullptr, .plain = [](const PlainHeadTile& tile, bool) {
                     const Tensor& q_PV = tile.q1_PV();
                     const Tensor value_P = q_PV.square().sum(1);
                     return HeadTermValue{value_P, 2.0 * q_PV * (q_PV - value_P.unsqueeze(1))};
                   }});
    return find_head_term("sum_of_squares");
  }();
  return term;
}

TEST(HeadLoss, ATermFromOutsideCountsBesideTheKernels) {
  const HeadTerm& term = added_term();
  EXPECT_THROW(add_head_term({.name = "sum_of_squares"}), ValueError);
  EXPECT_THROW(add_head_term({.name = "kd_loss"}), ValueError);
  EXPECT_THROW((void)find_head_term("sum_of_cubes"), ConfigError);
  for (const at::Device device : devices()) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      const Inputs in(2, 9, 65, device, dtype);
      const HeadObjective objective{.ce_weight = 0.3, .kd_weight = 0.5, .temperature = 2.0};
      Reference wanted = reference(in, objective, 0.5);
      const Tensor hidden = in.student_BSD.cpu().to(at::kDouble).flatten(0, 1).requires_grad_(true);
      const Tensor value_P = hidden.matmul(in.student_head.cpu().to(at::kDouble).t()).softmax(1).square().sum(1);
      const Tensor sum = (value_P * in.mask_BS.cpu().flatten()).sum();
      (sum * 0.7).backward();
      wanted.sums = at::cat({wanted.sums, sum.detach().view({1})});
      wanted.gradient = wanted.gradient + 0.5 * hidden.grad().view(wanted.gradient.sizes());

      const double tolerance = dtype == at::kDouble ? 1e-10 : 1e-5;
      const HeadLossOptions options{.tile_positions = 4, .added = {{&term, 0.7}}};
      const auto packed = head_losses(in.student_BSD, Head::packed(in.student_head, true), in.teacher_BSD,
                                      Head::packed(in.teacher_head, false), in.targets_BS, in.mask_BS, objective, 0.5, options);
      for (const HeadLosses& got : {in.run(objective, 0.5, options), packed}) {
        ASSERT_EQ(got.sums.numel(), kNumHeadSums + 1);
        EXPECT_LT(relative_error(got.sums, wanted.sums), tolerance);
        EXPECT_LT(gradient_error(got, wanted, in, objective, 0.5), tolerance);
      }
    }
  }
}

TEST(HeadLoss, WithoutGradientOnlyTheSums) {
  const Inputs in(2, 9, 33);
  const auto got = in.run({.ce_weight = 0.5}, 1.0, {.with_gradient = false});
  EXPECT_FALSE(got.grad_student_hidden_BSD.defined());
  EXPECT_TRUE(at::equal(got.sums, in.run({.ce_weight = 0.5}).sums));
}

TEST(HeadLoss, LargeLogitsStayFinite) {
  for (const at::Device device : devices()) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      const Inputs in(2, 9, 65, device, dtype, 3000.0);  // logits up to about 2e4
      for (const auto divergence : {Divergence::forward_kl, Divergence::reverse_kl, Divergence::jsd}) {
        for (const double T : {0.1, 1.0, 10.0}) {
          const HeadObjective options{
              .ce_weight = 0.5, .kd_weight = 0.5, .label_weight = 0.1, .label_mix = 0.5, .temperature = T, .divergence = divergence};
          const auto got = in.run(options);
          EXPECT_TRUE(got.sums.isfinite().all().item<bool>());
          EXPECT_TRUE(got.grad_student_hidden_BSD.isfinite().all().item<bool>());
          // float32 logits of 1e4 carry errors of 1e-3 themselves, so probabilities are exact to about that.
          EXPECT_LT(relative_error(got.sums, reference(in, options).sums), dtype == at::kDouble ? 1e-10 : 1e-3) << T;
        }
      }
    }
  }
}

TEST(HeadLoss, NonFiniteStatesShow) {
  for (const at::Device device : devices()) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      Inputs in(1, 4, 33, device, dtype);
      in.student_BSD[0][0][1] = kNan;
      const auto got = in.run({.ce_weight = 1.0, .kd_weight = 1.0, .temperature = 2.0});
      EXPECT_TRUE(std::isnan(got.sums[kCe].item<double>()));
      EXPECT_TRUE(std::isnan(got.sums[kKd].item<double>()));
      EXPECT_TRUE(got.grad_student_hidden_BSD[0][0].isnan().all().item<bool>());
    }
  }
}

TEST(HeadLoss, HeadsTakeNoGradientAndTheGraphIsLeftAlone) {
  Inputs in(1, 4, 9);
  in.student_BSD.requires_grad_(true);
  in.student_head.requires_grad_(true);
  const auto got = in.run({.ce_weight = 1.0, .kd_weight = 1.0});
  EXPECT_FALSE(got.grad_student_hidden_BSD.requires_grad());
  EXPECT_FALSE(in.student_head.grad().defined());
  EXPECT_FALSE(in.student_BSD.grad().defined());
}

TEST(HeadLoss, RefusesWhatDoesNotFit) {
  const auto message = [](const Inputs& in, const HeadObjective& options = {}) {
    try {
      (void)in.run(options);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const Inputs good(2, 3, 7);
  EXPECT_EQ(message(good), "accepted");
  Inputs in = good;
  in.teacher_head = at::zeros({9, 5}, at::kDouble);
  EXPECT_EQ(message(in),
            "head_losses: teacher logits [2, 3, 9], student logits [2, 3, 7]: the vocabularies differ; make the student from this "
            "teacher's head");
  EXPECT_THROW((void)in.run({}), ShapeError);
  in = good;
  in.teacher_BSD = at::zeros({2, 4, 5}, at::kDouble);
  EXPECT_NE(message(in).find("the positions differ"), std::string::npos);
  in = good;
  in.student_head = at::zeros({7, 4}, at::kDouble);
  EXPECT_EQ(message(in), "head_losses: student hidden states [2, 3, 6], head [7, 4]: they must be [B, S, D] and [V, D]");
  in = good;
  in.mask_BS = at::ones({2, 4}, at::kByte);
  EXPECT_NE(message(in).find("mask [2, 4]: it must be [B, S]"), std::string::npos);
  in = good;
  in.targets_BS[0][0] = 7;
  EXPECT_NE(message(in).find("target 7"), std::string::npos);
  in.targets_BS[0][0] = -100;
  EXPECT_NE(message(in).find("target -100"), std::string::npos);
  EXPECT_NE(message(good, {.temperature = 0.0}).find("temperature = 0"), std::string::npos);
  EXPECT_NE(message(good, {.divergence = Divergence::jsd, .jsd_beta = 1.0}).find("jsd_beta = 1"), std::string::npos);
}

}  // namespace
}  // namespace distil_xlstm::ops
