#include "ops/attention.h"

#include <ATen/Parallel.h>

#include "base/error.h"
#include "op_testing.h"

namespace distil_xlstm::ops {
namespace {

using namespace distil_xlstm::testing;

class AttentionTest : public OpTest {};

struct Case {
  int64_t B, S, H, G, K;
  double starts = 0.0;
};

// The formula, with all scores in memory.
Tensor reference(const Tensor& q_BSHK, const Tensor& k_BSGK, const Tensor& v_BSGK, const Tensor& is_start_BS) {
  const int64_t S = q_BSHK.size(1), repeats = q_BSHK.size(2) / k_BSGK.size(2);
  const auto heads_first = [](const Tensor& x, int64_t times) { return x.to(at::kDouble).repeat_interleave(times, 2).transpose(1, 2); };
  const Tensor q = heads_first(q_BSHK, 1), k = heads_first(k_BSGK, repeats), v = heads_first(v_BSGK, repeats);
  Tensor may_see_BSS = at::ones({q.size(0), S, S}, at::kBool).tril();
  if (is_start_BS.defined()) {
    const Tensor document_BS = is_start_BS.cumsum(1);
    may_see_BSS = may_see_BSS & (document_BS.unsqueeze(2) == document_BS.unsqueeze(1));
  }
  Tensor scores = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
  scores = scores.masked_fill(may_see_BSS.logical_not().unsqueeze(1), -std::numeric_limits<double>::infinity());
  return at::matmul(scores.softmax(-1), v).transpose(1, 2);
}

TEST_F(AttentionTest, EqualsTheFormula) {
  for (const Case& c :
       {Case{1, 1, 1, 1, 1}, Case{2, 7, 4, 2, 8, 0.3}, Case{3, 33, 6, 6, 5, 0.1}, Case{1, 130, 8, 4, 8, 0.02}, Case{2, 65, 3, 1, 16},
        Case{2, 40, 4, 4, 24, 0.1}, Case{1, 50, 2, 1, 32, 0.05}, Case{2, 65, 6, 2, 33}, Case{1, 1, 1, 1, 64}, Case{1, 193, 9, 3, 64, 0.03},
        Case{2, 24, 2, 2, 100, 0.2}, Case{1, 129, 4, 1, 128, 0.01}, Case{1, 300, 2, 1, 80}}) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
      for (const double scale : {1.0, 30.0}) {  // with large scores one key takes all
        SCOPED_TRACE(fmt::format("B={} S={} H={} G={} K={} {} x{}", c.B, c.S, c.H, c.G, c.K, at::toString(type), scale));
        const Tensor qkv =
            (randn({c.B, c.S, c.H + 2 * c.G, c.K}) * scale).to(type);  // queries, keys and values as a projection leaves them
        const Tensor q = qkv.narrow(2, 0, c.H), k = qkv.narrow(2, c.H, c.G), v = qkv.narrow(2, c.H + c.G, c.G);
        const Tensor starts = c.starts > 0 ? random_starts(c.B, c.S, c.starts) : Tensor();
        const Tensor out = causal_attention(q, k, v, starts);
        EXPECT_EQ(out.scalar_type(), type);
        EXPECT_LT(relative_error(out, reference(q, k, v, starts)), tolerance(type) * (scale > 1 ? scale : 1));
        EXPECT_TRUE(at::equal(out, causal_attention(q.contiguous(), k.contiguous(), v.contiguous(), starts)));
      }
    }
  }
}

TEST_F(AttentionTest, OneQueryEqualsTheLastOfTheFormula) {
  for (const Case& c : {Case{1, 1, 1, 1, 1}, Case{2, 7, 4, 2, 8}, Case{3, 33, 6, 6, 5}, Case{1, 271, 9, 3, 64}, Case{2, 65, 6, 2, 33},
                        Case{1, 2500, 4, 1, 128}, Case{1, 15, 2, 2, 100}}) {
    for (const at::ScalarType type : {at::kDouble, at::kFloat}) {
      for (const double scale : {1.0, 30.0}) {
        SCOPED_TRACE(fmt::format("B={} S={} H={} G={} K={} {} x{}", c.B, c.S, c.H, c.G, c.K, at::toString(type), scale));
        const Tensor q = (randn({c.B, c.H, c.K}) * scale).to(type);
        // As a cache: room for more tokens than there are.
        const Tensor k = (randn({c.B, c.G, c.S + 3, c.K}) * scale).to(type).narrow(2, 0, c.S);
        const Tensor v = (randn({c.B, c.G, c.S + 3, c.K}) * scale).to(type).narrow(2, 0, c.S);
        const Tensor queries = at::zeros({c.B, c.S, c.H, c.K}, type);
        queries.select(1, c.S - 1).copy_(q);
        const Tensor expected = reference(queries, k.transpose(1, 2), v.transpose(1, 2), {}).select(1, c.S - 1);
        const Tensor out = decode_attention(q, k, v);
        EXPECT_LT(relative_error(out, expected), tolerance(type) * (scale > 1 ? scale : 1));
        const int threads = at::get_num_threads();
        for (const int other : {1, 2, 5}) {
          at::set_num_threads(other);
          EXPECT_TRUE(at::equal(decode_attention(q, k, v), out)) << other;
        }
        at::set_num_threads(threads);
      }
    }
  }
}

TEST_F(AttentionTest, OneQueryOfScoresThatAreNotFiniteGivesNoNumber) {
  const Tensor q = at::rand({1, 2, 8}) + 0.1, v = at::randn({1, 1, 9, 8}), k = at::randn({1, 1, 9, 8});
  for (const double value : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const Tensor broken = k.clone();
    broken[0][0][4][3] = value;
    EXPECT_FALSE(decode_attention(q, broken, v).isfinite().all().item<bool>());
  }
}

TEST_F(AttentionTest, RefusesWhatDoesNotFit) {
  EXPECT_THROW(decode_attention(at::randn({1, 4, 8}), at::randn({1, 3, 5, 8}), at::randn({1, 3, 5, 8})), ShapeError);
  EXPECT_THROW(decode_attention(at::randn({1, 4, 8}), at::randn({1, 2, 5, 4}), at::randn({1, 2, 5, 4})), ShapeError);
  EXPECT_THROW(decode_attention(at::randn({1, 4, 8}), at::randn({1, 2, 0, 8}), at::randn({1, 2, 0, 8})), ShapeError);
  const Tensor q = at::randn({1, 3, 4, 8}), k = at::randn({1, 3, 3, 8});
  EXPECT_THROW(causal_attention(q, k, k, {}), ShapeError) << "4 heads over 3";
  EXPECT_THROW(causal_attention(q, at::randn({1, 2, 2, 8}), at::randn({1, 2, 2, 8}), {}), ShapeError);
  EXPECT_THROW(causal_attention(q, q, q.transpose(1, 2).contiguous().transpose(1, 2), {}), ShapeError) << "strides";
  const Tensor half = q.to(at::kBFloat16);
  EXPECT_THROW(causal_attention(half, half, half, {}), ShapeError);
}

TEST_F(AttentionTest, OverflowShows) {
  for (const int64_t K : {8, 48}) {
    const Tensor q = at::randn({1, 40, 1, K}), k = at::randn({1, 40, 1, K}), v = at::randn({1, 40, 1, K});
    k.select(1, 0).fill_(-std::numeric_limits<float>::infinity());
    q.abs_();
    const Tensor out = causal_attention(q, k, v, {});
    EXPECT_TRUE(out.select(1, 0).isnan().all().item<bool>()) << "its only key has a score of -inf";
    EXPECT_TRUE(out.narrow(1, 1, 39).isfinite().all().item<bool>()) << "the other keys take all";
  }
}

TEST_F(AttentionTest, LeavesToLibTorchWhatItDoesFaster) {
  const at::TensorOptions single(at::kFloat);
  const int before = at::get_num_threads();
  at::set_num_threads(4);
  EXPECT_TRUE(prefers_causal_attention(single, {.B = 1, .S = 4096, .G = 1, .K = 32}));
  EXPECT_TRUE(prefers_causal_attention(single, {.B = 2, .S = 2048, .G = 2, .K = 64}));
  EXPECT_FALSE(prefers_causal_attention(single, {.B = 1, .S = 64, .G = 3, .K = 64})) << "a thread would have no head";
  EXPECT_FALSE(prefers_causal_attention(single, {.B = 3, .S = 64, .G = 3, .K = 64})) << "three threads would wait for one";
  EXPECT_TRUE(prefers_causal_attention(single, {.B = 5, .S = 64, .G = 3, .K = 64}));
  EXPECT_FALSE(prefers_causal_attention(single, {.B = 4, .S = 2049, .G = 3, .K = 64}));
  EXPECT_FALSE(prefers_causal_attention(single.dtype(at::kBFloat16), {.B = 4, .S = 64, .G = 3, .K = 8}));
  EXPECT_FALSE(prefers_causal_attention(single.device(at::kMeta), {.B = 4, .S = 64, .G = 3, .K = 8}));
  at::set_num_threads(before);
}

}  // namespace
}  // namespace distil_xlstm::ops
