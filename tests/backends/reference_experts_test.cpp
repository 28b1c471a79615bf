// The forward of `reference` for experts, routing, hyper-connections and the loss, against closed forms; and its
// memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "backends/reference_fixture.h"
#include "support/numbers.h"
#include "tensor/ops.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary
using testing::DoubleNear;
using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::Pointwise;

TEST_F(ReferenceForward, SwigluLimits) {
  const Held gate(DType::f64, {4}, {9, 1, -9, kNaN}), up(DType::f64, {4}, {2, -9, 9, 1}), out(DType::f64, {4});
  ops_.swiglu({.gate = gate, .up = up, .limit = 3, .out = out});
  const auto silu = [](double x) { return x / (1 + std::exp(-x)); };
  const auto got = out.values();
  EXPECT_NEAR(got[0], silu(3) * 2, 1e-14);
  EXPECT_NEAR(got[1], silu(1) * -3, 1e-14);
  EXPECT_NEAR(got[2], silu(-9) * 3, 1e-14);
  EXPECT_TRUE(std::isnan(got[3]));
}

TEST_F(ReferenceForward, RouteOfV3LeavesUnselectedGroupsEvenWhenBiasIsNegative) {
  // Group 0 = experts 0, 1 has the better two; its second expert's biased score is negative and still beats group 1.
  const Held logits(DType::f64, {1, 4}, {4, -4, 0, 0}), bias(DType::f64, {4}, {0.5, -0.5, -0.4, -0.4}),
      indices(DType::i32, {1, 2}), weights(DType::f64, {1, 2});
  const Routing routing{.scoring = Scoring::kSigmoid,
                        .experts = 4,
                        .top_k = 2,
                        .groups = 2,
                        .top_groups = 1,
                        .group_rank = GroupRank::kTopTwoSum,
                        .normalize = true,
                        .scaling = 2.5};
  ops_.route({.logits = logits,
              .bias = bias,
              .table = {},
              .ids = {},
              .routing = routing,
              .indices = indices,
              .weights = weights});
  EXPECT_THAT(indices.values(), ElementsAre(0, 1));
  const double a = 1 / (1 + std::exp(-4.0)), b = 1 / (1 + std::exp(4.0));
  EXPECT_THAT(weights.values(), Pointwise(DoubleNear(1e-14), {2.5 * a / (a + b), 2.5 * b / (a + b)}));
}

TEST_F(ReferenceForward, RouteTiesGoToLowerExperts) {
  const Held logits(DType::f64, {1, 6}, {1, 2, 2, 2, 1, 2}), indices(DType::i32, {1, 3}), weights(DType::f64, {1, 3});
  const Routing routing{.scoring = Scoring::kSoftmax,
                        .experts = 6,
                        .top_k = 3,
                        .groups = 3,
                        .top_groups = 2,
                        .group_rank = GroupRank::kMax,
                        .normalize = false,
                        .scaling = 1};
  ops_.route({.logits = logits,
              .bias = {},
              .table = {},
              .ids = {},
              .routing = routing,
              .indices = indices,
              .weights = weights});
  EXPECT_THAT(indices.values(), ElementsAre(1, 2, 3));
  const double p = std::exp(2.0) / (4 * std::exp(2.0) + 2 * std::exp(1.0));
  EXPECT_THAT(weights.values(), Pointwise(DoubleNear(1e-14), {p, p, p}));
}

TEST_F(ReferenceForward, RouteByTable) {
  const Held logits(DType::f64, {1, 3}, {0, 1, -30}), table(DType::i64, {2, 2}, {0, 1, 2, 1}),
      ids(DType::i32, {1}, {1}), indices(DType::i32, {1, 2}), weights(DType::f64, {1, 2});
  const Routing routing{.scoring = Scoring::kSqrtSoftplus,
                        .experts = 3,
                        .top_k = 2,
                        .groups = 1,
                        .top_groups = 1,
                        .group_rank = GroupRank::kMax,
                        .normalize = false,
                        .scaling = 1};
  ops_.route({.logits = logits,
              .bias = {},
              .table = table.weight(),
              .ids = ids,
              .routing = routing,
              .indices = indices,
              .weights = weights});
  EXPECT_THAT(indices.values(), ElementsAre(2, 1));
  EXPECT_NEAR(weights.values()[0], std::sqrt(std::log1p(std::exp(-30.0))), 1e-20);
  EXPECT_NEAR(weights.values()[1], std::sqrt(std::log1p(std::exp(1.0))), 1e-14);
}

TEST_F(ReferenceForward, ExpertsAreFeedForwardsWeighted) {
  constexpr std::int64_t kTokens = 3, kHidden = 4, kInner = 5;
  std::vector<Held> gate, up, down;
  std::vector<Weight> gates, ups, downs;
  for (int e = 0; e < 2; ++e) {
    gate.push_back(waves({kInner, kHidden}, 3 * e + 1)), up.push_back(waves({kInner, kHidden}, 3 * e + 2)),
        down.push_back(waves({kHidden, kInner}, 3 * e + 3));
    gates.push_back(gate.back().weight()), ups.push_back(up.back().weight()), downs.push_back(down.back().weight());
  }
  // Experts 4 and 5 of 8 are here; token 1 goes to neither.
  const Held x = waves({kTokens, kHidden}, 9), indices(DType::i32, {kTokens, 2}, {4, 5, 1, 7, 5, 0}),
             weights(DType::f64, {kTokens, 2}, {0.5, 2, 1, 1, -1, 1});
  const Held out(DType::f64, {kTokens, kHidden}, [](std::int64_t) { return 1.0; });
  ops_.experts({.x = x,
                .indices = indices,
                .weights = weights,
                .gate = gates,
                .up = ups,
                .down = downs,
                .first_expert = 4,
                .total_experts = 8,
                .limit = 0.5,
                .out = out,
                .accumulate = true});
  std::vector<double> want(kTokens * kHidden, 1.0);
  const double factor[2][kTokens] = {{0.5, 0, 0}, {2, 0, -1}};
  for (std::size_t e = 0; e < 2; ++e) {
    const Held a(DType::f64, {kTokens, kInner}), b(DType::f64, {kTokens, kInner}), c(DType::f64, {kTokens, kHidden});
    ops_.linear({.x = x, .weight = gates[e], .bias = {}, .out = a});
    ops_.linear({.x = x, .weight = ups[e], .bias = {}, .out = b});
    ops_.swiglu({.gate = a, .up = b, .limit = 0.5, .out = a});
    ops_.linear({.x = a, .weight = downs[e], .bias = {}, .out = c});
    for (std::size_t i = 0; i < want.size(); ++i) want[i] += factor[e][i / kHidden] * c.values()[i];
  }
  EXPECT_THAT(out.values(), Pointwise(DoubleNear(1e-13), want));
}

TEST_F(ReferenceForward, HyperMixIsDoublyStochasticAndMergesBack) {
  constexpr std::int64_t kTokens = 2, kStreams = 4, kHidden = 3;
  const Held streams = waves({kTokens, kStreams, kHidden}, 1), fn = waves({24, 12}, 2), base = waves({24}, 3),
             scale(DType::f64, {3}, {0.7, 1.3, 0.9});
  const Held collapsed(DType::f64, {kTokens, kHidden}), post(DType::f64, {kTokens, kStreams}),
      comb(DType::f64, {kTokens, kStreams, kStreams});
  ops_.hyper_mix({.streams = streams,
                  .fn = fn.weight(),
                  .base = base,
                  .scale = scale,
                  .iterations = 50,
                  .eps = 0,
                  .norm_eps = 1e-6,
                  .collapsed = collapsed,
                  .post = post,
                  .comb = comb});
  const auto m = comb.values();
  for (std::size_t t = 0; t < kTokens; ++t)
    for (std::size_t i = 0; i < kStreams; ++i) {
      double row = 0, column = 0;
      for (std::size_t j = 0; j < kStreams; ++j) row += m[t * 16 + i * 4 + j], column += m[t * 16 + j * 4 + i];
      EXPECT_NEAR(row, 1, 1e-9);
      EXPECT_NEAR(column, 1, 1e-12);
    }
  // One iteration, zero logits: softmax rows are 1/4 each, columns then sum to 1 already.
  const Held zero(DType::f64, {24, 12}), no_base(DType::f64, {24});
  ops_.hyper_mix({.streams = streams,
                  .fn = zero.weight(),
                  .base = no_base,
                  .scale = scale,
                  .iterations = 1,
                  .eps = 0.5,
                  .norm_eps = 1e-6,
                  .collapsed = collapsed,
                  .post = post,
                  .comb = comb});
  EXPECT_NEAR(comb.values()[5], 0.75 / 3.5, 1e-14);
  EXPECT_NEAR(post.values()[5], 1.0, 1e-14);
  const auto s = streams.values();
  EXPECT_NEAR(collapsed.values()[0], 1.0 * (s[0] + s[3] + s[6] + s[9]), 1e-14);

  const Held x(DType::f64, {1, 2}, {1, 10}), two(DType::f64, {1, 2, 2}, {1, 2, 3, 4}),
      where(DType::f64, {1, 2}, {0, 1}), mix(DType::f64, {1, 2, 2}, {1, 2, 3, 4}), out(DType::f64, {1, 2, 2});
  ops_.hyper_merge({.x = x, .streams = two, .post = where, .comb = mix, .out = out});
  EXPECT_THAT(out.values(), ElementsAre(1 * 1 + 3 * 3, 1 * 2 + 3 * 4, 1 + 2 * 1 + 4 * 3, 10 + 2 * 2 + 4 * 4));
}

TEST_F(ReferenceForward, CrossEntropy) {
  const Held logits(DType::f64, {3, 4}, {7, 7, 7, 7, 0, 0, 0, 1000, 1, 2, 3, 4}),
      targets(DType::i32, {3}, {2, 0, -100}), losses(DType::f64, {3});
  ops_.cross_entropy({.logits = logits, .targets = targets, .losses = losses});
  EXPECT_THAT(losses.values(), Pointwise(DoubleNear(1e-12), {std::log(4.0), 1000.0, 0.0}));
}

TEST(ReferenceBackend, BuffersAreZeroedPages) {
  auto backend = reference::make_reference_backend({});
  ASSERT_TRUE(backend);
  auto buffer = (*backend)->allocate_buffer(100'001);
  ASSERT_TRUE(buffer);
  EXPECT_EQ((*buffer)->bytes(), 100'001u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>((*buffer)->data()) % 4096, 0u);
  EXPECT_EQ((*buffer)->data()[100'000], std::byte{0});
  const auto absurd = (*backend)->allocate_buffer(Bytes{1} << 60);
  ASSERT_FALSE(absurd);
  EXPECT_EQ(absurd.error().kind, ErrorKind::kEnvironment);
  EXPECT_NE(error_text(absurd.error()), absurd.error().key);
  EXPECT_FALSE(reference::make_reference_backend({.activation_dtype = DType::i8}));
}

}  // namespace
}  // namespace fathom::test
