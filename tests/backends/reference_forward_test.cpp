// The forward of `reference` against small closed forms and identities worked out by hand. The golden files hold it
// against transformers; here are the corners that no golden file reaches.
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

TEST_F(ReferenceForward, EmbedTakesRowsOfEveryPlainType) {
  for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
    const Held table(dtype, {3, 2}, {1, 2, 3, 4, -5, 0.5}), ids(DType::i32, {4}, {2, 0, 2, 1}), out(DType::f32, {4, 2});
    ops_.embed({.ids = ids, .table = table.weight(), .out = out});
    EXPECT_THAT(out.values(), ElementsAre(-5, 0.5, 1, 2, -5, 0.5, 3, 4));
  }
}

TEST_F(ReferenceForward, CopyRoundsOnceToNearestEven) {
  const Held x(DType::f64, {4}, {1.0 + 0x1p-9 + 0x1p-40, 1.0 + 0x1p-8, 1.0 + 0x1p-8 + 0x1p-45, kInf}),
      out(DType::bf16, {4});
  ops_.copy({.x = x, .out = out});
  EXPECT_THAT(out.values(), ElementsAre(1.0, 1.0, 1.0 + 0x1p-7, kInf));
}

TEST_F(ReferenceForward, RmsNorm) {
  const Held x(DType::f64, {1, 2}, {3, 4}), weight(DType::f32, {2}, {2, 10}), out(DType::f64, {1, 2});
  ops_.rms_norm({.x = x, .weight = weight, .eps = 0, .out = out});
  EXPECT_THAT(out.values(), Pointwise(DoubleNear(1e-14), {6 / std::sqrt(12.5), 40 / std::sqrt(12.5)}));
  ops_.rms_norm({.x = x, .weight = {}, .eps = 12.5, .out = x});  // in place
  EXPECT_THAT(x.values(), Pointwise(DoubleNear(1e-14), {3.0 / 5, 4.0 / 5}));
}

TEST_F(ReferenceForward, LayerNorm) {
  const Held x(DType::f64, {1, 2}, {1, 5}), weight(DType::f64, {2}, {1, 3}), bias(DType::f64, {2}, {0.5, -1}),
      out(DType::f64, {1, 2});
  ops_.layer_norm({.x = x, .weight = weight, .bias = bias, .eps = 0, .out = out});
  EXPECT_THAT(out.values(), Pointwise(DoubleNear(1e-14), {-0.5, 2.0}));
}

TEST_F(ReferenceForward, LinearIsExactOnIntegers) {
  for (const DType dtype : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
    const Held x(DType::f32, {2, 3}, {1, 2, 3, -1, 0, 1}), weight(dtype, {2, 3}, {1, 1, 1, 4, 0, -2}),
        bias(DType::f32, {2}, {10, 20});
    const Held out(DType::f32, {2, 2}, {100, 100, 100, 100});
    ops_.linear({.x = x, .weight = weight.weight(), .bias = bias, .out = out, .accumulate = true});
    EXPECT_THAT(out.values(), ElementsAre(116, 118, 110, 114));
    ops_.linear({.x = x, .weight = weight.weight(), .bias = {}, .out = out});
    EXPECT_THAT(out.values(), ElementsAre(6, -2, 0, -6));
  }
}

TEST_F(ReferenceForward, GroupedLinearBothWays) {
  // Two groups of two rows; only the second row of each takes part.
  const Held weight(DType::f32, {4, 2}, {9, 9, 1, 2, 9, 9, 3, 4}), x(DType::f64, {1, 2, 2}, {1, 1, 1, -1}),
      out(DType::f64, {1, 2, 1});
  ops_.grouped_linear({.x = x,
                       .weight = weight.weight(),
                       .group_rows = 2,
                       .row_offset = 1,
                       .rows = 1,
                       .transposed = false,
                       .out = out});
  EXPECT_THAT(out.values(), ElementsAre(3, -1));
  const Held back(DType::f64, {1, 2, 2});
  ops_.grouped_linear({.x = out,
                       .weight = weight.weight(),
                       .group_rows = 2,
                       .row_offset = 1,
                       .rows = 1,
                       .transposed = true,
                       .out = back});
  EXPECT_THAT(back.values(), ElementsAre(3, 6, -3, -4));
}

TEST_F(ReferenceForward, RopeTurnsPairsAndBack) {
  const Held positions(DType::i32, {2}, {3, -1}), frequency(DType::f32, {1}, {0.5}), cos(DType::f64, {2, 1}),
      sin(DType::f64, {2, 1});
  ops_.rotary({.positions = positions, .inverse_frequency = frequency, .scale = 2, .cos = cos, .sin = sin});
  EXPECT_THAT(cos.values(), Pointwise(DoubleNear(1e-14), {2 * std::cos(1.5), 2.0}));
  EXPECT_THAT(sin.values(), Pointwise(DoubleNear(1e-14), {2 * std::sin(1.5), 0.0}));
  const Held x(DType::f64, {1, 1, 4}, {7, 1, 0, 8});
  const Tensor c = cos.tensor().rows(0, 1), s = sin.tensor().rows(0, 1);
  ops_.rope({.x = x, .cos = c, .sin = s, .first_dim = 1, .interleaved = true, .inverse = false});
  EXPECT_THAT(x.values(), Pointwise(DoubleNear(1e-14), {7.0, 2 * std::cos(1.5), 2 * std::sin(1.5), 8.0}));
  ops_.rope({.x = x, .cos = c, .sin = s, .first_dim = 1, .interleaved = true, .inverse = true});
  EXPECT_THAT(x.values(), Pointwise(DoubleNear(1e-13), {7.0, 4.0, 0.0, 8.0}));  // scale 2 applied twice
}

TEST_F(ReferenceForward, RopeHalvesAreInterleavedPermuted) {
  const Held cos = waves({3, 4}, 1), sin = waves({3, 4}, 2), halves = waves({3, 2, 8}, 3), pairs(DType::f64, {3, 2, 8});
  const auto source = halves.values();
  for (std::int64_t r = 0; r < 6; ++r)
    for (std::int64_t i = 0; i < 8; ++i)
      put_element(element_address(pairs, r * 8 + (i % 4) * 2 + i / 4), DType::f64,
                  source[static_cast<std::size_t>(r * 8 + i)]);
  ops_.rope({.x = halves, .cos = cos, .sin = sin, .first_dim = 0, .interleaved = false, .inverse = false});
  ops_.rope({.x = pairs, .cos = cos, .sin = sin, .first_dim = 0, .interleaved = true, .inverse = false});
  const auto a = halves.values(), b = pairs.values();
  for (std::int64_t r = 0; r < 6; ++r)
    for (std::int64_t i = 0; i < 8; ++i)
      EXPECT_DOUBLE_EQ(a[static_cast<std::size_t>(r * 8 + i)],
                       b[static_cast<std::size_t>(r * 8 + (i % 4) * 2 + i / 4)]);
}

TEST_F(ReferenceForward, AttentionOfTwoTokensByHand) {
  const Sequence sequence{.slot = 0, .first_token = 0, .tokens = 2, .past = 0};
  const Batch batch{.tokens = 2, .sequences = {&sequence, 1}};
  const Held q(DType::f64, {2, 1, 1}, {5, 2}), k(DType::f64, {2, 1, 1}, {1, 3}),
      v(DType::f64, {2, 1, 2}, {1, 2, 10, 20});
  const Held sink(DType::f64, {1}, {0.25}), out(DType::f64, {2, 1, 2}), lse(DType::f64, {2, 1});
  const KvSegment segment{.kind = KvSegment::Kind::kFresh, .k = k, .k_shared = {}, .v = v};
  ops_.attention(
      {.q = q, .segments = {&segment, 1}, .scale = 0.5, .sink = {}, .out = out, .lse = lse, .batch = &batch});
  const double p = std::exp(3.0) / (std::exp(1.0) + std::exp(3.0));
  EXPECT_THAT(out.values(), Pointwise(DoubleNear(1e-13), {1.0, 2.0, 1 - p + 10 * p, 2 - 2 * p + 20 * p}));
  EXPECT_THAT(lse.values(), Pointwise(DoubleNear(1e-13), {2.5, std::log(std::exp(1.0) + std::exp(3.0))}));
  ops_.attention(
      {.q = q, .segments = {&segment, 1}, .scale = 0.5, .sink = sink, .out = out, .lse = {}, .batch = &batch});
  EXPECT_NEAR(out.values()[0], std::exp(2.5) / (std::exp(2.5) + std::exp(0.25)), 1e-13);
}

/// One sequence of `total` tokens computed whole and in chunks through caches must give the same.
TEST_F(ReferenceForward, RingAndFreshEqualOneWindowedPass) {
  constexpr std::int64_t kTotal = 23, kHeads = 2, kWidth = 3, kWindow = 5, kRing = 7;
  const Held q = waves({kTotal, kHeads, kWidth}, 1), k = waves({kTotal, 1, kWidth}, 2),
             want(DType::f64, {kTotal, kHeads, kWidth});
  const Sequence all{.slot = 0, .first_token = 0, .tokens = kTotal, .past = 0};
  const Batch whole{.tokens = kTotal, .sequences = {&all, 1}};
  const KvSegment fresh{
      .kind = KvSegment::Kind::kFresh, .k = k, .k_shared = {}, .v = k, .rows_per_slot = 0, .window = kWindow};
  ops_.attention({.q = q, .segments = {&fresh, 1}, .scale = 1, .sink = {}, .out = want, .lse = {}, .batch = &whole});

  const Held ring(DType::f64, {3 * kRing, 1, kWidth}, [](std::int64_t) { return kNaN; }),
      got(DType::f64, {kTotal, kHeads, kWidth});
  std::int64_t past = 0;
  for (const std::int64_t chunk : {1, 6, 3, 9, 1, 3}) {
    const Sequence part{.slot = 2,
                        .first_token = 0,
                        .tokens = static_cast<std::int32_t>(chunk),
                        .past = static_cast<std::int32_t>(past)};
    const Batch batch{.tokens = chunk, .sequences = {&part, 1}};
    const Tensor mine = k.tensor().rows(past, chunk);
    const KvSegment segments[] = {
        {.kind = KvSegment::Kind::kRingPast,
         .k = ring,
         .k_shared = {},
         .v = ring,
         .rows_per_slot = kRing,
         .window = kWindow},
        {.kind = KvSegment::Kind::kFresh, .k = mine, .k_shared = {}, .v = mine, .rows_per_slot = 0, .window = kWindow}};
    ops_.attention({.q = q.tensor().rows(past, chunk),
                    .segments = segments,
                    .scale = 1,
                    .sink = {},
                    .out = got.tensor().rows(past, chunk),
                    .lse = {},
                    .batch = &batch});
    ops_.cache_write(
        {.src = mine, .cache = ring, .rows_per_slot = kRing, .rows = RowsOf::kRing, .ratio = 1, .batch = &batch});
    past += chunk;
  }
  EXPECT_THAT(got.values(), Pointwise(DoubleNear(1e-13), want.values()));
}

TEST_F(ReferenceForward, SharedKeysAreKeysOfEveryHead) {
  constexpr std::int64_t kTokens = 4;
  const Sequence sequence{.slot = 0, .first_token = 0, .tokens = kTokens, .past = 0};
  const Batch batch{.tokens = kTokens, .sequences = {&sequence, 1}};
  const Held q = waves({kTokens, 2, 5}, 1), k = waves({kTokens, 2, 3}, 2), shared = waves({kTokens, 2}, 3),
             v = waves({kTokens, 2, 2}, 4);
  const Held joined(DType::f64, {kTokens, 2, 5}), got(DType::f64, {kTokens, 2, 2}), want(DType::f64, {kTokens, 2, 2});
  for (std::int64_t t = 0; t < kTokens; ++t)
    for (std::int64_t h = 0; h < 2; ++h)
      for (std::int64_t i = 0; i < 5; ++i)
        put_element(element_address(joined, (t * 2 + h) * 5 + i), DType::f64,
                    i < 3 ? k.values()[static_cast<std::size_t>((t * 2 + h) * 3 + i)]
                          : shared.values()[static_cast<std::size_t>(t * 2 + i - 3)]);
  const KvSegment apart{.kind = KvSegment::Kind::kFresh, .k = k, .k_shared = shared, .v = v},
      one{.kind = KvSegment::Kind::kFresh, .k = joined, .k_shared = {}, .v = v};
  ops_.attention({.q = q, .segments = {&apart, 1}, .scale = 0.7, .sink = {}, .out = got, .lse = {}, .batch = &batch});
  ops_.attention({.q = q, .segments = {&one, 1}, .scale = 0.7, .sink = {}, .out = want, .lse = {}, .batch = &batch});
  EXPECT_THAT(got.values(), Pointwise(DoubleNear(1e-14), want.values()));
}

TEST_F(ReferenceForward, IndexSelectTakesLargestInRowOrder) {
  const Sequence sequence{.slot = 0, .first_token = 0, .tokens = 4, .past = 0};
  const Batch batch{.tokens = 4, .sequences = {&sequence, 1}};
  const Held q(DType::f64, {4, 1, 1}, {1, 1, 1, 1}), weights(DType::f64, {4, 1}, {1, 1, 1, 1}),
      keys(DType::f64, {4, 1, 1}, {1, 5, 1, 9});
  const Held selected(DType::i32, {4, 2});
  ops_.index_select({.q = q,
                     .weights = weights,
                     .keys = {.kind = KvSegment::Kind::kFresh, .k = keys, .k_shared = {}, .v = {}},
                     .scale = 1,
                     .selected = selected,
                     .batch = &batch});
  EXPECT_THAT(selected.values(), ElementsAre(0, -1, 0, 1, 0, 1, 1, 3));  // the tie of rows 0 and 2 goes to row 0
}

TEST_F(ReferenceForward, CompressByHandAndInChunks) {
  constexpr std::int64_t kTotal = 11, kRatio = 2, kWidth = 3;
  for (const bool overlap : {false, true}) {
    const std::int64_t w = overlap ? 2 * kWidth : kWidth, state_rows = 2 * kRatio;
    const Held kv = waves({kTotal, w}, 1), gate = waves({kTotal, w}, 2), ape = waves({kRatio, w}, 3);
    const Sequence all{.slot = 0, .first_token = 0, .tokens = kTotal, .past = 0};
    const Batch whole{.tokens = kTotal, .sequences = {&all, 1}};
    const Held out(DType::f64, {6, kWidth}), positions(DType::i32, {6});
    ops_.compress({.kv = kv,
                   .gate = gate,
                   .ape = ape,
                   .state_kv = {},
                   .state_gate = {},
                   .state_rows = 0,
                   .ratio = kRatio,
                   .overlap = overlap,
                   .out = out,
                   .positions = positions,
                   .batch = &whole});
    EXPECT_THAT(positions.values(), ElementsAre(0, 2, 4, 6, 8, -1));
    const auto x = kv.values(), g = gate.values(), a = ape.values();
    const auto at = [&](std::int64_t t, std::int64_t c) { return static_cast<std::size_t>(t * w + c); };
    for (std::int64_t e = 0; e < 5; ++e)
      for (std::int64_t c = 0; c < kWidth; ++c) {
        double above = 0, below = 0;
        for (std::int64_t t = std::max<std::int64_t>(0, (overlap ? e - 1 : e) * kRatio); t < (e + 1) * kRatio; ++t) {
          const std::int64_t column = overlap && t >= e * kRatio ? kWidth + c : c;
          const double weight = std::exp(g[at(t, column)] + a[at(t % kRatio, column)]);
          above += weight * x[at(t, column)], below += weight;
        }
        EXPECT_NEAR(out.values()[static_cast<std::size_t>(e * kWidth + c)], above / below, 1e-13)
            << overlap << " " << e << " " << c;
      }
    EXPECT_EQ(out.values().back(), 0.0);

    const auto nothing = [](std::int64_t) { return kNaN; };
    const Held state_kv(DType::f64, {2 * state_rows, w}, nothing), state_gate(DType::f64, {2 * state_rows, w}, nothing);
    std::int64_t past = 0;
    for (const std::int64_t chunk : {1, 4, 1, 1, 4}) {
      const Sequence part{.slot = 1,
                          .first_token = 0,
                          .tokens = static_cast<std::int32_t>(chunk),
                          .past = static_cast<std::int32_t>(past)};
      const Batch batch{.tokens = chunk, .sequences = {&part, 1}};
      const std::int64_t rows = max_entries(chunk, kRatio);
      const Held part_out(DType::f64, {rows, kWidth}), part_positions(DType::i32, {rows});
      const Tensor my_kv = kv.tensor().rows(past, chunk), my_gate = gate.tensor().rows(past, chunk);
      ops_.compress({.kv = my_kv,
                     .gate = my_gate,
                     .ape = ape,
                     .state_kv = state_kv,
                     .state_gate = state_gate,
                     .state_rows = state_rows,
                     .ratio = kRatio,
                     .overlap = overlap,
                     .out = part_out,
                     .positions = part_positions,
                     .batch = &batch});
      for (std::int64_t r = 0; r < rows; ++r) {
        const double position = part_positions.values()[static_cast<std::size_t>(r)];
        for (std::int64_t c = 0; position >= 0 && c < kWidth; ++c)
          EXPECT_DOUBLE_EQ(part_out.values()[static_cast<std::size_t>(r * kWidth + c)],
                           out.values()[static_cast<std::size_t>(position / kRatio * kWidth + static_cast<double>(c))]);
      }
      ops_.cache_write({.src = my_kv,
                        .cache = state_kv,
                        .rows_per_slot = state_rows,
                        .rows = RowsOf::kRing,
                        .ratio = 1,
                        .batch = &batch});
      ops_.cache_write({.src = my_gate,
                        .cache = state_gate,
                        .rows_per_slot = state_rows,
                        .rows = RowsOf::kRing,
                        .ratio = 1,
                        .batch = &batch});
      past += chunk;
    }
  }
}

TEST_F(ReferenceForward, CacheWriteOfEntriesSkipsOpenWindows) {
  const Sequence sequences[] = {{.slot = 1, .first_token = 0, .tokens = 3, .past = 3},
                                {.slot = 0, .first_token = 3, .tokens = 2, .past = 0}};
  const Batch batch{.tokens = 5, .sequences = sequences};
  const Held src(DType::f64, {3, 1}, {11, 12, 13}), cache(DType::bf16, {8, 1}, {0, 0, 0, 0, 0, 0, 0, 0});
  ops_.cache_write(
      {.src = src, .cache = cache, .rows_per_slot = 4, .rows = RowsOf::kEntry, .ratio = 2, .batch = &batch});
  EXPECT_THAT(cache.values(), ElementsAre(13, 0, 0, 0, 0, 11, 12, 0));
}

}  // namespace
}  // namespace fathom::test
