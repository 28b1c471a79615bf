// What backend cuda launches as one gives what its ops give one by one: waiting between them keeps them apart. Skipped
// where there is no device.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "backends/cuda_latents.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary

class CudaDecoding : public CudaTest {};

struct HeadShape {
  std::int64_t heads, kv_heads, width;
  bool interleaved;
  std::int32_t sequences = 2;
  std::int64_t rows = sequences > 2 ? 150 : 600;  // of the cache, a sequence
};

class CudaDecodingWithCache : public CudaDecoding, public testing::WithParamInterface<DType> {};
INSTANTIATE_TEST_SUITE_P(Types, CudaDecodingWithCache, testing::Values(DType::bf16, DType::f8e4m3, DType::i8),
                         [](const auto& type) { return std::string(dtype_name(type.param)); });

TEST_P(CudaDecodingWithCache, RotationsAndCacheRowsGoWithAttention) {
  for (const HeadShape& s : {HeadShape{6, 1, 128, false},
                             {4, 4, 128, false},
                             {32, 32, 128, false},
                             {4, 2, 64, true},
                             {3, 1, 64, false},
                             {8, 1, 128, true},
                             {12, 2, 128, false},
                             {28, 4, 128, false},
                             {15, 5, 64, true},
                             {64, 8, 64, false, 6},
                             {48, 8, 128, false, 8, 600},
                             {28, 4, 128, true, 8, 2400},
                             {32, 32, 128, false, 20},
                             {32, 16, 64, true, 36}}) {
    const std::int64_t kTokens = s.sequences, kSlots = s.sequences + 1, kRows = s.rows;
    std::vector<Sequence> sequences;
    for (std::int32_t i = 0; i < s.sequences; ++i)
      sequences.push_back({.slot = s.sequences - i,
                           .first_token = i,
                           .tokens = 1,
                           .past = i == 0 ? 0 : static_cast<std::int32_t>(kRows) - 4 * i});
    const Tensor table = make(DType::i32, {kTokens, 4}), cosines = make(DType::f32, {kTokens, s.width / 2}),
                 sines = make(DType::f32, {kTokens, s.width / 2});
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& sequence = sequences[i];
      const std::int32_t row[4] = {sequence.slot, sequence.first_token, sequence.tokens, sequence.past};
      std::memcpy(table.data + 16 * i, row, sizeof row);
    }
    for (std::int64_t i = 0; i < cosines.elements(); ++i)
      cosines.as<float>()[i] = std::cos(static_cast<float>(i)), sines.as<float>()[i] = std::sin(static_cast<float>(i));
    Batch batch;
    batch.tokens = kTokens;
    batch.sequences = sequences;
    batch.sequence_table = table;
    const Tensor first[5] = {random(DType::f32, {kTokens, s.heads * s.width}),
                             random(DType::f32, {kTokens, s.kv_heads * s.width}),
                             random(DType::f32, {kTokens, s.kv_heads * s.width}),
                             random_cache(GetParam(), kSlots * kRows, s.kv_heads, s.width),
                             random_cache(GetParam(), kSlots * kRows, s.kv_heads, s.width)};
    Tensor all[2][5], out[2];
    for (int apart = 0; apart < 2; ++apart) {
      for (int i = 0; i < 5; ++i) all[apart][i] = copy_of(first[i]);
      const auto& [q, k, v, k_cache, v_cache] = all[apart];
      out[apart] = make(DType::f32, q.shape);
      const Tensor qh = q.split_last(s.width), kh = k.split_last(s.width);
      const Tensor keys = k_cache.columns(0, s.kv_heads * s.width).split_last(s.width),
                   values = v_cache.columns(0, s.kv_heads * s.width).split_last(s.width);
      Ops& ops = backend_->ops();
      ops.rope({.x = qh, .cos = cosines, .sin = sines, .interleaved = s.interleaved});
      ops.rope({.x = kh, .cos = cosines, .sin = sines, .interleaved = s.interleaved});
      ops.cache_write({.src = kh, .cache = keys, .rows_per_slot = kRows, .batch = &batch});
      ops.cache_write({.src = v.split_last(s.width), .cache = values, .rows_per_slot = kRows, .batch = &batch});
      if (apart == 1) wait();
      const KvSegment segment{.kind = KvSegment::Kind::kCache, .k = keys, .v = values, .rows_per_slot = kRows};
      ops.attention(
          {.q = qh, .segments = {&segment, 1}, .scale = 0.1, .out = out[apart].split_last(s.width), .batch = &batch});
      wait();
    }
    expect_near(out[0], out[1], 1e-5);
    for (int i = 0; i < 5; ++i)
      EXPECT_TRUE(same_bits(all[0][i], all[1][i])) << "tensor " << i << " of " << s.heads << " heads of " << s.width;
  }
}

/// Softmax attention of one token, of whose keys the first columns are the values, in double.
Tensor attended(const Tensor& out, const Tensor& q, const Tensor& cache, std::int64_t first_row, std::int64_t keys,
                double scale) {
  const std::int64_t width = q.dim(2), dv = out.dim(2);
  std::vector<double> rows(static_cast<std::size_t>(keys * width)), weights(static_cast<std::size_t>(keys));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, cache.data + 2 * (first_row * width + static_cast<std::int64_t>(i)), 2);
    rows[i] = bf16_to_f32(half);
  }
  for (std::int64_t h = 0; h < q.dim(1); ++h) {
    double largest = -INFINITY, total = 0;
    for (std::int64_t k = 0; k < keys; ++k) {
      double sum = 0;
      for (std::int64_t d = 0; d < width; ++d)
        sum += q.as<float>()[h * width + d] * rows[static_cast<std::size_t>(k * width + d)];
      weights[static_cast<std::size_t>(k)] = sum * scale;
      largest = std::max(largest, sum * scale);
    }
    for (double& weight : weights) total += weight = std::exp(weight - largest);
    for (std::int64_t d = 0; d < dv; ++d) {
      double sum = 0;
      for (std::int64_t k = 0; k < keys; ++k)
        sum += weights[static_cast<std::size_t>(k)] * rows[static_cast<std::size_t>(k * width + d)];
      out.as<float>()[h * dv + d] = static_cast<float>(sum / total);
    }
  }
  return out;
}

TEST_F(CudaDecoding, LatentsAndQueriesAreMadeByTheirAttention) {
  constexpr std::int64_t kRank = kLatentRank, kRope = kLatentRope, kNope = kLatentNope, kValues = kLatentValues,
                         kWidth = kLatentWidth, kRows = 1400;
  struct Case {
    std::int64_t heads;
    std::int32_t past;
    bool interleaved;
  };
  for (const Case& c :
       {Case{16, 0, true}, {16, 5, true}, {16, 511, true}, {16, 1399, false}, {8, 300, true}, {4, 64, false}}) {
    const Sequence sequence{.slot = 1, .first_token = 0, .tokens = 1, .past = c.past};
    const std::int32_t row[4] = {1, 0, 1, c.past};
    const Tensor table = make(DType::i32, {1, 4}), cosines = make(DType::f32, {1, kRope / 2}),
                 sines = make(DType::f32, {1, kRope / 2});
    std::memcpy(table.data, row, sizeof row);
    for (std::int64_t i = 0; i < kRope / 2; ++i)
      cosines.as<float>()[i] = std::cos(static_cast<float>(i)), sines.as<float>()[i] = std::sin(static_cast<float>(i));
    Batch batch;
    batch.tokens = 1;
    batch.sequences = {&sequence, 1};
    batch.sequence_table = table;
    const Weight kv_b = weight(c.heads * (kNope + kValues), kRank);
    const Tensor norm = random(DType::bf16, {kRank});
    const Tensor first[3] = {random(DType::f32, {1, c.heads * (kNope + kRope)}), random(DType::f32, {1, kWidth}),
                             random(DType::bf16, {2 * kRows, kWidth})};
    Tensor all[3][6];
    for (int way = 0; way < 3; ++way) {  // as one, apart, as one again
      for (int i = 0; i < 3; ++i) all[way][i] = copy_of(first[i]);
      all[way][3] = make(DType::f32, {1, kRank}), all[way][4] = make(DType::f32, {1, c.heads, kWidth});
      all[way][5] = make(DType::f32, {1, c.heads, kRank});
      const auto& [q, kv, cache, latent, carried, out] = all[way];
      Ops& ops = backend_->ops();
      prepare_latents(ops,
                      {.q = q,
                       .kv = kv,
                       .cache = cache,
                       .latent = latent,
                       .carried = carried,
                       .cosines = cosines,
                       .sines = sines,
                       .norm = norm,
                       .kv_b = kv_b,
                       .rows_per_slot = kRows,
                       .batch = &batch,
                       .interleaved = c.interleaved},
                      [] {});
      if (way == 1) wait();
      const KvSegment segment = latent_segment(cache, kRows);
      ops.attention({.q = carried,
                     .segments = {&segment, 1},
                     .scale = 0.1,
                     .out = out,
                     .batch = &batch,
                     .only_products = way != 1});
      wait();
    }
    const Tensor &cache = all[0][2], &out = all[0][5], &carried = all[1][4];
    for (const int i : {0, 2, 5}) EXPECT_TRUE(same_bits(all[0][i], all[2][i])) << i;
    EXPECT_TRUE(same_bits(all[0][0], all[1][0]));
    const std::int64_t at = (kRows + c.past) * kWidth;  // the new token's row
    for (std::int64_t i = 0; i < cache.elements(); ++i) {
      std::uint16_t got = 0, want = 0;
      std::memcpy(&got, cache.data + 2 * i, 2), std::memcpy(&want, all[1][2].data + 2 * i, 2);
      if (i >= at && i < at + kRank)
        ASSERT_LE(std::abs(bf16_to_f32(got) - bf16_to_f32(want)), 0.008f * std::abs(bf16_to_f32(want))) << i - at;
      else
        ASSERT_EQ(got, want) << i - at;
    }
    expect_near(out, attended(make(DType::f32, out.shape), carried, cache, kRows, c.past + 1, 0.1), 1e-4);
    expect_near(all[1][5], out, 2e-2);  // rounds its queries
  }
}

TEST_F(CudaDecoding, ProductsOfSomeTokensGoTogether) {
  struct Shape {
    std::int64_t tokens, hidden, inner;
  };
  // Few tokens of wide x go the way of many, but for the product with a bias and the narrow one.
  for (const auto& [tokens, kHidden, kInner] :
       {Shape{9, 328, 1040}, {17, 328, 1040}, {32, 328, 1040}, {33, 328, 1040}, {3, 3072, 1408}, {8, 3072, 1408}}) {
    constexpr std::int64_t kFew = 48;
    const Weight q = weight(kHidden, kHidden), k = weight(kFew, kHidden), gate = weight(kInner, kHidden),
                 up = weight(kInner, kHidden), down = weight(kHidden, kInner);
    const Tensor x = random(DType::f32, {tokens, kHidden}), norm = random(DType::f32, {kHidden}),
                 bias = random(DType::f32, {kFew});
    Tensor made[2][6];
    for (int apart = 0; apart < 2; ++apart) {
      Ops& ops = backend_->ops();
      const auto pause = [&] {
        if (apart == 1) wait();
      };
      auto& [normed, of_q, of_k, gated, ups, out] = made[apart];
      normed = make(DType::f32, {tokens, kHidden}), of_q = make(DType::f32, {tokens, kHidden});
      of_k = make(DType::f32, {tokens, kFew}), gated = make(DType::f32, {tokens, kInner});
      ups = make(DType::f32, {tokens, kInner}), out = make(DType::f32, {tokens, kHidden});
      for (int again = 0; again < 2; ++again) {
        ops.rms_norm({.x = x, .weight = norm, .eps = 1e-6, .out = normed});
        pause();
        ops.linear({.x = normed, .weight = q, .out = of_q});
        pause();
        ops.linear({.x = normed, .weight = k, .bias = bias, .out = of_k});
        pause();
        ops.linear({.x = normed, .weight = gate, .out = gated});
        pause();
        ops.linear({.x = normed, .weight = up, .out = ups});
        pause();
        ops.swiglu({.gate = gated, .up = ups, .out = gated});
        pause();
        ops.linear({.x = gated, .weight = down, .out = out});
        pause();
        ops.add({.a = out, .b = of_q, .out = out});
        pause();
        ops.add({.a = normed, .b = x, .out = normed});  // what was known of it is no longer true
        pause();
        ops.linear({.x = normed, .weight = gate, .out = gated});
        ops.linear({.x = normed, .weight = up, .out = ups});
        ops.swiglu({.gate = gated, .up = ups, .out = gated});
        wait();
      }
    }
    for (int i = 0; i < 6; ++i) expect_near(made[0][i], made[1][i], i == 5 ? 1e-3 : 1e-5);  // bf16 may round otherwise
  }
}

TEST_F(CudaDecoding, ExpertsAreChosenAndSummedOnTheWay) {
  constexpr std::int64_t kInner = 96, kExperts = 16, kTopK = 6;
  for (const auto& [hidden, shared] : {std::pair<std::int64_t, std::int64_t>{256, 160}, {2048, 1416}}) {
    std::vector<Weight> gate, up, down;
    for (std::int64_t e = 0; e < kExperts; ++e)
      gate.push_back(weight(kInner, hidden)), up.push_back(weight(kInner, hidden)),
          down.push_back(weight(hidden, kInner));
    const Weight router = weight(kExperts, hidden), shared_gate = weight(shared, hidden),
                 shared_up = weight(shared, hidden), shared_down = weight(hidden, shared);
    for (const std::int64_t tokens : {1, 2, 3, 9, 32, 40}) {
      const Tensor from = random(DType::f32, {tokens, hidden}), norm = random(DType::f32, {hidden});
      Tensor out[2], indices[2], weights[2], normed[2], behind[2];
      for (int apart = 0; apart < 2; ++apart) {
        Ops& ops = backend_->ops();
        const auto pause = [&] {
          if (apart == 1) wait();
        };
        const Tensor logits = make(DType::f32, {tokens, kExperts}), g = make(DType::f32, {tokens, shared}),
                     u = make(DType::f32, {tokens, shared});
        out[apart] = make(DType::f32, {tokens, hidden}), normed[apart] = make(DType::f32, {tokens, hidden});
        indices[apart] = make(DType::i32, {tokens, kTopK}), weights[apart] = make(DType::f32, {tokens, kTopK});
        const Tensor& x = normed[apart];
        ops.rms_norm({.x = from, .weight = norm, .eps = 1e-6, .out = x});
        pause();
        ops.linear({.x = x, .weight = router, .out = logits});
        pause();
        ops.route({.logits = logits,
                   .routing = {.experts = kExperts, .top_k = kTopK, .scaling = 2},
                   .indices = indices[apart],
                   .weights = weights[apart]});
        pause();
        ops.linear({.x = x, .weight = shared_gate, .out = g});
        ops.linear({.x = x, .weight = shared_up, .out = u});
        pause();
        ops.swiglu({.gate = g, .up = u, .out = g});
        pause();
        ops.linear({.x = g, .weight = shared_down, .out = out[apart]});
        pause();
        ops.experts({.x = x,
                     .indices = indices[apart],
                     .weights = weights[apart],
                     .gate = gate,
                     .up = up,
                     .down = down,
                     .first_expert = 0,
                     .total_experts = kExperts,
                     .out = out[apart],
                     .accumulate = true});
        pause();
        ops.add({.a = out[apart], .b = from, .out = out[apart]});
        pause();
        behind[apart] = make(DType::f32, {tokens, hidden});
        ops.rms_norm({.x = out[apart], .weight = norm, .eps = 1e-6, .out = behind[apart]});
        wait();
      }
      SCOPED_TRACE(testing::Message() << hidden << " columns, " << tokens << " tokens");
      expect_near(normed[0], normed[1], 1e-5);
      EXPECT_TRUE(same_bits(indices[0], indices[1]));
      expect_near(weights[0], weights[1], 1e-3);
      expect_near(behind[0], behind[1], 1e-3);
      expect_near(out[0], out[1], 1e-3);  // products of one token: two bf16 halves of x, or f32 itself
    }
  }
}

TEST_F(CudaDecoding, ExpertsOneBehindTheOtherGiveWhatExpertsApartGive) {
  struct Case {
    std::int64_t tokens, hidden, inner, experts, top_k, first, total;
    DType type = DType::bf16;
  };
  for (const Case& c : {Case{3, 256, 128, 16, 6, 0, 16},
                        {9, 1088, 192, 8, 2, 0, 8, DType::f16},
                        {32, 2048, 1408, 24, 6, 0, 64},
                        {40, 512, 576, 16, 2, 8, 32},
                        {40, 640, 64, 8, 4, 0, 8},
                        {64, 320, 1472, 12, 3, 4, 32, DType::f16}}) {
    const Tensor x = random(DType::f32, {c.tokens, c.hidden});
    const Tensor indices = make(DType::i32, {c.tokens, c.top_k}), weights = random(DType::f32, {c.tokens, c.top_k});
    for (std::int64_t t = 0; t < c.tokens; ++t)  // every token chooses the first: it has more hits than a run
      for (std::int64_t k = 0; k < c.top_k; ++k)
        indices.as<std::int32_t>()[t * c.top_k + k] =
            static_cast<std::int32_t>((c.first + (k == 0 ? 0 : 1 + (t * 7 + k) % (c.total - 1))) % c.total);
    std::vector<Weight> matrices[2][3];
    for (int m = 0; m < 3; ++m) {
      const std::int64_t rows = m < 2 ? c.inner : c.hidden, cols = m < 2 ? c.hidden : c.inner;
      const Tensor all = random(c.type, {c.experts * rows, cols}, 1 / std::sqrt(static_cast<float>(cols)));
      std::byte* const even = on_device(all);
      const auto bytes = static_cast<std::int64_t>(all.bytes()) / c.experts;
      const WeightFormat format = c.type == DType::bf16 ? WeightFormat::bf16 : WeightFormat::f16;
      for (std::int64_t e = 0; e < c.experts; ++e)
        matrices[0][m].push_back({.format = format, .rows = rows, .cols = cols, .data = even + e * bytes});
      for (std::int64_t e = c.experts - 1; e >= 0; --e)
        matrices[1][m].insert(
            matrices[1][m].begin(),
            {.format = format, .rows = rows, .cols = cols, .data = on_device(all.rows(e * rows, rows))});
    }
    Tensor out[2];
    for (int apart = 0; apart < 2; ++apart) {
      out[apart] = make(DType::f32, {c.tokens, c.hidden});
      for (int again = 0; again < 3; ++again)
        backend_->ops().experts({.x = x,
                                 .indices = indices,
                                 .weights = weights,
                                 .gate = matrices[apart][0],
                                 .up = matrices[apart][1],
                                 .down = matrices[apart][2],
                                 .first_expert = c.first,
                                 .total_experts = c.total,
                                 .out = out[apart]});
      wait();
    }
    SCOPED_TRACE(testing::Message() << c.tokens << " tokens of " << c.hidden << ", " << c.experts << " experts of "
                                    << c.inner);
    expect_near(out[0], out[1], 1e-3);  // gated values are rounded to 16 bits
  }
}

}  // namespace
}  // namespace fathom::test
