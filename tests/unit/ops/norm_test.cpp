#include "ops/norm.h"

#include "base/error.h"
#include "kernels/reference/reference.h"
#include "op_testing.h"

namespace distil_xlstm::ops {
namespace {

using namespace distil_xlstm::testing;

struct Case {
  int64_t rows, groups, width;
};
const std::vector<Case> kCases = {{1, 1, 1},    {3, 1, 5},     {7, 4, 16},  {33, 3, 21},   {100, 1, 96}, {9, 12, 64},
                                  {65, 2, 130}, {17, 12, 128}, {3, 2, 520}, {70, 1, 1536}, {3, 1, 4104}};

class NormTest : public OpTest {};

TEST_F(NormTest, ResidualLayerNormMatchesTheReference) {
  for (const Case& c : kCases) {
    const Tensor x = randn({c.rows, c.groups * c.width}) + 3, weight = randn({c.groups * c.width}, 0.3);
    Tensor y = at::empty_like(x);
    kernels::reference::residual_layer_norm(c.rows, c.groups, c.width, x.data_ptr<double>(), weight.data_ptr<double>(), 1e-5,
                                            y.data_ptr<double>());
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16}) {
        SCOPED_TRACE(fmt::format("rows={} groups={} width={} {} {}", c.rows, c.groups, c.width, device.str(), at::toString(type)));
        // bfloat16 is compared on its own rounded input: the mean of 3 makes that rounding large beside the spread.
        Tensor expected = y;
        const Tensor given = x.to(type);
        if (type == at::kBFloat16) {
          const Tensor rounded = given.to(at::kDouble);
          expected = at::empty_like(x);
          kernels::reference::residual_layer_norm(c.rows, c.groups, c.width, rounded.data_ptr<double>(), weight.data_ptr<double>(), 1e-5,
                                                  expected.data_ptr<double>());
        }
        const Tensor out = residual_layer_norm(given.to(device), weight.to(device, type), c.groups);
        EXPECT_EQ(out.scalar_type(), type);
        EXPECT_LT(relative_error(out, expected), tolerance(type));
      }
    }
  }
}

TEST_F(NormTest, ResidualLayerNormGradientsMatchDifferences) {
  for (const Case& c : {Case{1, 1, 4}, Case{3, 2, 5}, Case{4, 1, 9}}) {
    const Tensor x = randn({c.rows, c.groups * c.width}), weight = randn({c.groups * c.width}, 0.3),
                 w = randn({c.rows, c.groups * c.width});
    expect_gradients_match([&](const std::vector<Tensor>& p) { return (residual_layer_norm(p[0], p[1], c.groups) * w).sum(); },
                           {x, weight});
  }
}

TEST_F(NormTest, ResidualLayerNormGradientsEqualThoseOfPlainOperations) {
  for (const Case& c : kCases) {
    const Tensor x = randn({2, c.rows, c.groups * c.width}), weight = randn({c.groups * c.width}, 0.3), w = randn(x.sizes());
    const auto plain = gradients(
        [&](const std::vector<Tensor>& p) {
          const Tensor grouped = p[0].unflatten(-1, {c.groups, c.width}), centered = grouped - grouped.mean(-1, true);
          const Tensor normalized = centered / (centered.square().mean(-1, true) + 1e-5).sqrt();
          return (normalized.flatten(-2) * (1 + p[1]) * w).sum();
        },
        {x, weight});
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
        SCOPED_TRACE(fmt::format("rows={} groups={} width={} {} {}", c.rows, c.groups, c.width, device.str(), at::toString(type)));
        const Tensor weights = w.to(device, type);
        const auto grads =
            gradients([&](const std::vector<Tensor>& p) { return (residual_layer_norm(p[0], p[1], c.groups) * weights).sum(); },
                      {x.to(device, type), weight.to(device, type)});
        // Of a group of one the gradient is exactly 0, and rounding has nothing to be measured against.
        if (c.width > 1) {
          EXPECT_LT(relative_error(grads[0], plain[0]), 10 * tolerance(type));
          EXPECT_LT(relative_error(grads[1], plain[1]), tolerance(type));
        }
      }
    }
  }
}

// Types that training uses: the residual stream in float32 with outputs in half precision, the cells' outputs in half precision throughout.
TEST_F(NormTest, ResidualLayerNormBetweenTypes) {
  for (const Case& c : kCases) {
    if (c.width == 1) continue;
    for (const auto& [x_type, y_type] : {std::pair(at::kFloat, at::kBFloat16),
                                         {at::kFloat, at::kHalf},
                                         {at::kBFloat16, at::kBFloat16},
                                         {at::kHalf, at::kHalf},
                                         {at::kBFloat16, at::kFloat},
                                         {at::kFloat, at::kDouble}}) {
      const Tensor x = randn({c.rows, c.groups * c.width}).to(x_type), weight = randn({c.groups * c.width}, 0.3).to(at::kFloat);
      const Tensor w = randn(x.sizes()).to(y_type);
      const auto loss = [&](const std::vector<Tensor>& p) {
        const Tensor grouped = p[0].unflatten(-1, {c.groups, c.width}), centered = grouped - grouped.mean(-1, true);
        return ((centered / (centered.square().mean(-1, true) + 1e-5).sqrt()).flatten(-2) * (1 + p[1]) * w).sum();
      };
      const auto expected = gradients(loss, {x.to(at::kDouble), weight.to(at::kDouble)});
      const Tensor y = residual_layer_norm(x.to(at::kDouble), weight.to(at::kDouble), c.groups);
      for (const at::Device& device : devices()) {
        SCOPED_TRACE(fmt::format("rows={} groups={} width={} {} {} to {}", c.rows, c.groups, c.width, device.str(), at::toString(x_type),
                                 at::toString(y_type)));
        Tensor out;
        const auto grads = gradients(
            [&](const std::vector<Tensor>& p) {
              out = residual_layer_norm(p[0], p[1], c.groups, y_type);
              return (out * w.to(device)).sum(at::kDouble);
            },
            {x.to(device), weight.to(device)});
        EXPECT_EQ(out.scalar_type(), y_type);
        EXPECT_LT(relative_error(out, y), y_type == at::kDouble ? 1e-5 : tolerance(y_type));
        // In float32 what is left of sums that cancel in short rows; in half precision its rounding is all that counts.
        EXPECT_LT(relative_error(grads[0], expected[0]), x_type == at::kFloat ? 1e-4 : tolerance(x_type));
        EXPECT_LT(relative_error(grads[1], expected[1]), tolerance(at::kFloat));
        const at::NoGradGuard no_grad;
        EXPECT_TRUE(at::equal(out, residual_layer_norm(x.to(device), weight.to(device), c.groups, y_type)));
      }
    }
  }
}

// The sum, its norm, and gradients that reach x and what is added through both.
TEST_F(NormTest, AddNormIsASumAndItsNorm) {
  for (const Case& c : kCases) {
    if (c.width == 1) continue;
    const int64_t width = c.groups * c.width;
    for (const auto& [x_type, added_type, y_type] : {std::tuple(at::kDouble, at::kDouble, at::kDouble),
                                                     {at::kFloat, at::kFloat, at::kFloat},
                                                     {at::kFloat, at::kBFloat16, at::kBFloat16},
                                                     {at::kFloat, at::kBFloat16, at::kHalf},
                                                     {at::kFloat, at::kHalf, at::kHalf}}) {
      for (const bool adds : {true, false}) {
        const Tensor x = randn({2, c.rows, width}).to(x_type), added = randn(x.sizes()).to(added_type),
                     weight = randn({width}, 0.3).to(x_type), w_sum = randn(x.sizes()), w_normed = randn(x.sizes()).to(y_type);
        const auto loss = [&](const std::vector<Tensor>& p) {
          const Tensor sum = adds ? p[0] + p[1] : p[0], centered = sum - sum.mean(-1, true);
          const Tensor normed = centered / (centered.square().mean(-1, true) + 1e-5).sqrt() * (1 + p[2]);
          return (sum * w_sum).sum() + (normed * w_normed.to(at::kDouble)).sum() + 0 * p[1].sum();
        };
        const auto expected = gradients(loss, {x.to(at::kDouble), added.to(at::kDouble), weight.to(at::kDouble)});
        for (const at::Device& device : devices()) {
          SCOPED_TRACE(fmt::format("rows={} width={} {} {} + {} to {}", c.rows, width, device.str(), at::toString(x_type),
                                   adds ? at::toString(added_type) : "nothing", at::toString(y_type)));
          AddNorm out;
          const auto grads = gradients(
              [&](const std::vector<Tensor>& p) {
                out = add_norm(p[0], adds ? p[1] : Tensor(), p[2], y_type);
                return (out.sum * w_sum.to(device)).sum(at::kDouble) + (out.normed * w_normed.to(device)).sum(at::kDouble) + 0 * p[1].sum();
              },
              {x.to(device), added.to(device), weight.to(device)});
          const Tensor sum = adds ? x + added : x;
          EXPECT_EQ(out.sum.scalar_type(), x_type);
          EXPECT_TRUE(at::equal(out.sum.detach().to(at::kCPU), sum));
          EXPECT_EQ(out.normed.scalar_type(), y_type);
          EXPECT_TRUE(at::equal(out.normed, residual_layer_norm(sum.to(device), weight.to(device), 1, y_type)));
          EXPECT_LT(relative_error(grads[0], expected[0]), x_type == at::kDouble ? 1e-10 : 1e-4);
          if (adds) {
            EXPECT_LT(relative_error(grads[1], expected[1]), x_type == at::kDouble ? 1e-10 : std::max(1e-4, tolerance(added_type)));
          }
          EXPECT_LT(relative_error(grads[2], expected[2]), tolerance(x_type));
          const at::NoGradGuard no_grad;
          const AddNorm plain = add_norm(x.to(device), adds ? added.to(device) : Tensor(), weight.to(device), y_type);
          EXPECT_TRUE(at::equal(plain.sum, out.sum) && at::equal(plain.normed, out.normed));
        }
      }
    }
  }
}

// One of the two may have no reader.
// Values and gradients of both results, each with its reader, against plain operations.
TEST_F(NormTest, AddRmsNormIsASumAndItsNorm) {
  for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 3}, {3, 5}, {9, 64}, {65, 130}, {70, 576}, {300, 64}, {3, 4104}}) {
    const Tensor x = randn({rows, width}), added = randn({rows, width}).to(at::kBFloat16).to(at::kDouble), weight = randn({width}, 0.5) + 1,
                 w_sum = randn(x.sizes()), w_normed = randn(x.sizes());
    const auto loss = [&](const auto& norm, const std::vector<Tensor>& p) {
      const AddNorm out = norm(p[0], p[1], p[2]);
      return (out.sum * w_sum.to(p[0].device())).sum(at::kDouble) + (out.normed * w_normed.to(p[0].device())).sum(at::kDouble);
    };
    const auto plain = [](const Tensor& a, const Tensor& b, const Tensor& w) {
      const Tensor sum = a + b;
      return AddNorm{sum, sum * (sum.square().mean(-1, true) + 1e-6).rsqrt() * w};
    };
    const auto expected = gradients([&](const std::vector<Tensor>& p) { return loss(plain, p); }, {x, added, weight});
    const Tensor expected_norm = plain(x, added, weight).normed;
    for (const at::Device& device : devices()) {
      for (const auto& [type, y_type] : {std::pair{at::kDouble, at::kDouble}, {at::kFloat, at::kFloat}, {at::kFloat, at::kBFloat16}}) {
        SCOPED_TRACE(fmt::format("rows={} width={} {} {} {}", rows, width, device.str(), at::toString(type), at::toString(y_type)));
        const double limit = tolerance(y_type);
        const auto ours = [&](const Tensor& a, const Tensor& b, const Tensor& w) { return add_rms_norm(a, b, w, 1e-6, y_type); };
        const std::vector<Tensor> inputs = {x.to(device, type), added.to(device, y_type), weight.to(device, type)};
        const AddNorm out = ours(inputs[0], inputs[1], inputs[2]);
        EXPECT_EQ(out.normed.scalar_type(), y_type);
        EXPECT_EQ(out.sum.scalar_type(), type);
        EXPECT_LT(relative_error(out.normed, expected_norm), limit);
        const auto found = gradients([&](const std::vector<Tensor>& p) { return loss(ours, p); }, inputs);
        for (size_t i = 0; i < 3; ++i) EXPECT_LT(relative_error(found[i], expected[i]), 2 * limit) << i;
        // Without a sum, and with the stream read by nobody else.
        const auto alone = gradients(
            [&](const std::vector<Tensor>& p) {
              return (add_rms_norm(p[0], {}, p[1], 1e-6, y_type).normed * w_normed.to(device)).sum(at::kDouble);
            },
            {inputs[0], inputs[2]});
        const auto expected_alone = gradients(
            [&](const std::vector<Tensor>& p) { return (plain(p[0], at::zeros_like(p[0]), p[1]).normed * w_normed).sum(); }, {x, weight});
        for (size_t i = 0; i < 2; ++i) EXPECT_LT(relative_error(alone[i], expected_alone[i]), 2 * limit) << i;
      }
    }
  }
}

TEST_F(NormTest, AddNormWithOneReader) {
  const Tensor x = randn({5, 8}), added = randn({5, 8}), weight = randn({8}, 0.3), w = randn({5, 8});
  testing::expect_gradients_match([&](const std::vector<Tensor>& p) { return (add_norm(p[0], p[1], p[2]).sum * w).sum() + 0 * p[2].sum(); },
                                  {x, added, weight});
  testing::expect_gradients_match([&](const std::vector<Tensor>& p) { return (add_norm(p[0], p[1], p[2]).normed * w).sum(); },
                                  {x, added, weight});
}

TEST_F(NormTest, RmsNormMatchesTheReference) {
  for (const Case& c : kCases) {
    const Tensor x = randn({c.rows, c.width}), weight = randn({c.width});
    Tensor y = at::empty_like(x);
    kernels::reference::rms_norm(c.rows, c.width, x.data_ptr<double>(), weight.data_ptr<double>(), 1e-6, y.data_ptr<double>());
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf}) {
        const Tensor out = rms_norm(x.to(device, type), weight.to(device, type), 1e-6);
        EXPECT_EQ(out.scalar_type(), type);
        EXPECT_LT(relative_error(out, y), tolerance(type)) << device.str() << " " << at::toString(type);
      }
    }
  }
}

Tensor plain_rms_norm(const Tensor& x, const Tensor& weight) {
  const Tensor wide = x.to(at::kCPU, at::kDouble);
  return wide / (wide.square().mean(-1, true) + 1e-6).sqrt() * weight.to(at::kCPU, at::kDouble);
}

// Widths up to and beyond what a CUDA kernel holds: rows of vectors, of single values, and those left to tensor operations.
TEST_F(NormTest, RmsNormOfWideRows) {
  for (const int64_t width : {1536, 4096, 4097, 8960, 9001, 16384, 16388, 32768, 32776}) {
    const Tensor x = randn({5, width}), weight = randn({width});
    for (const at::Device& device : devices()) {
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        const Tensor given = x.to(device, type), factor = weight.to(device, type);
        EXPECT_LT(relative_error(rms_norm(given, factor, 1e-6), plain_rms_norm(given, factor)), tolerance(type))
            << width << " " << device.str() << " " << at::toString(type);
      }
    }
  }
}

TEST_F(NormTest, RmsNormTakesAnyStridesPlacesAndWeights) {
  const int64_t B = 2, S = 7, H = 3, K = 24;
  for (const at::Device& device : devices()) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto options = at::TensorOptions(device).dtype(type);
      const Tensor weight = at::randn({K}, options);
      const std::vector<std::pair<const char*, Tensor>> views{
          {"heads of a joint product", at::randn({B, S, H + 2, K}, options).narrow(2, 1, H)},
          {"channels apart", at::randn({B, S, K, H}, options).transpose(2, 3)},
          {"not at a multiple of 16 bytes", at::randn({B * K + 1}, options).narrow(0, 1, B * K).view({B, K})},
          {"one row", at::randn({K}, options)},
          {"no rows", at::randn({0, K}, options)}};
      for (const auto& [name, x] : views) {
        SCOPED_TRACE(fmt::format("{} {} {}", device.str(), at::toString(type), name));
        const Tensor before = x.clone(), out = rms_norm(x, weight, 1e-6);
        EXPECT_EQ(out.scalar_type(), type);
        EXPECT_LT(relative_error(out, plain_rms_norm(x, weight)), tolerance(type));
        EXPECT_TRUE(at::equal(x, before));
      }
      const Tensor x = at::randn({5, K}, options), wide = at::randn({K + 1}, options.dtype(at::kFloat)).narrow(0, 1, K);
      EXPECT_LT(relative_error(rms_norm(x, wide, 1e-6), plain_rms_norm(x, wide)), tolerance(type)) << "a weight of another type";
    }
  }
}

TEST_F(NormTest, RmsNormIsDifferentiable) {
  const Tensor w = randn({3, 7});
  expect_gradients_match([&](const std::vector<Tensor>& p) { return (rms_norm(p[0], p[1], 1e-6) * w).sum(); }, {randn({3, 7}), randn({7})});
}

TEST_F(NormTest, RmsNormWithACopyOfItsInput) {
  for (const at::Device& device : devices()) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kDouble}) {
      for (const int64_t width : {5, 64}) {
        const Tensor x = randn({3, 2, width}).to(device, type), weight = randn({width}).to(device, type);
        const at::NoGradGuard no_grad;
        const auto [y, copy] = rms_norm_and_copy(x, weight, 1e-6);
        EXPECT_TRUE(at::equal(y, rms_norm(x, weight, 1e-6)));
        EXPECT_TRUE(at::equal(copy, x));
        EXPECT_FALSE(copy.is_alias_of(x));
      }
    }
  }
}

// The same bits as one addition after the other, whatever the number.
TEST_F(NormTest, StateSumIsTheSum) {
  for (const at::Device& device : devices()) {
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const int64_t count : {0, 1, 4, 7, 9}) {
        const at::NoGradGuard no_grad;
        StateSum sum;
        Tensor expected;
        for (int64_t i = 0; i < count; ++i) {
          Tensor state = randn({3, 17}).to(device, type);
          expected = expected.defined() ? expected + state.to(at::kFloat) : state.to(at::kFloat, false, /*copy=*/true);
          const bool is_last = i + 1 == count && count % 2 == 1;
          if (sum.add(state, is_last)) {
            EXPECT_FALSE(is_last);
          } else {
            EXPECT_EQ(state.use_count(), 1U) << "is held, and not read any more";
            state.fill_(0);
          }
        }
        const Tensor got = sum.take();
        ASSERT_EQ(got.defined(), count > 0);
        EXPECT_TRUE(count == 0 || at::equal(got, expected)) << device.str() << " " << at::toString(type) << " " << count;
        EXPECT_FALSE(sum.take().defined());
      }
    }
  }
}

TEST_F(NormTest, RefusesWhatDoesNotFit) {
  EXPECT_THROW(residual_layer_norm(randn({2, 6}), randn({5})), ShapeError);
  EXPECT_THROW(residual_layer_norm(randn({2, 6}), randn({6}), 4), ShapeError);
  EXPECT_THROW(residual_layer_norm(randn({2, 6}), randn({6}), 0), ShapeError);
  EXPECT_THROW(add_norm(randn({2, 6}), {}, randn({5})), ShapeError);
  EXPECT_THROW(add_norm(randn({2, 6}), randn({3, 6}), randn({6})), ShapeError);
  EXPECT_THROW(rms_norm(randn({2, 6}), randn({5}), 1e-6), ShapeError);
  EXPECT_THROW(add_rms_norm(randn({2, 6}), randn({3, 6}), randn({6}), 1e-6), ShapeError);
}

}  // namespace
}  // namespace distil_xlstm::ops
