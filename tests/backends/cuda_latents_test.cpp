// Latent attention of some tokens, one a sequence, with what goes before and behind it: launched together, its ops give
// what they give one by one (waiting between them keeps them apart). Skipped where there is no device.
#include "backends/cuda_latents.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary

class CudaLatents : public CudaTest {};

struct Case {
  std::int64_t heads, tokens;
  std::int32_t past;  // of the first; each that follows has 37 more
  bool interleaved;
};

TEST_F(CudaLatents, OfSomeTokensLaunchedTogetherGiveWhatTheirOpsGive) {
  constexpr std::int64_t kRank = kLatentRank, kRope = kLatentRope, kNope = kLatentNope, kValues = kLatentValues,
                         kWidth = kLatentWidth, kRows = 1400, kHidden = 320;
  // The last but one has too many tokens for the launches that are looked at here, the last too few.
  for (const Case& c : {Case{16, 32, 0, true},
                        {16, 9, 3, false},
                        {16, 12, 128, true},
                        {8, 20, 500, false},
                        {32, 17, 90, true},
                        {16, 33, 1, true},
                        {16, 8, 64, true}}) {
    std::vector<Sequence> sequences;
    const Tensor table = make(DType::i32, {c.tokens, 4}), cosines = make(DType::f32, {c.tokens, kRope / 2}),
                 sines = make(DType::f32, {c.tokens, kRope / 2});
    for (std::int32_t t = 0; t < c.tokens; ++t) {
      const std::int32_t slot = static_cast<std::int32_t>(c.tokens) - 1 - t, past = c.past + 37 * t;
      ASSERT_LT(past, kRows);
      sequences.push_back({.slot = slot, .first_token = t, .tokens = 1, .past = past});
      const std::int32_t row[4] = {slot, t, 1, past};
      std::memcpy(table.data + t * 16, row, sizeof row);
      for (std::int64_t i = 0; i < kRope / 2; ++i) {
        const auto angle = static_cast<float>(past + i);
        cosines.as<float>()[t * kRope / 2 + i] = std::cos(angle),
                                            sines.as<float>()[t * kRope / 2 + i] = std::sin(angle);
      }
    }
    Batch batch;
    batch.tokens = c.tokens;
    batch.sequences = sequences;
    batch.sequence_table = table;
    const Weight kv_b = weight(c.heads * (kNope + kValues), kRank), o = weight(kHidden, c.heads * kValues);
    const Tensor norm = random(DType::bf16, {kRank}), residual = random(DType::f32, {c.tokens, kHidden});
    const Tensor first[3] = {random(DType::f32, {c.tokens, c.heads * (kNope + kRope)}),
                             random(DType::f32, {c.tokens, kWidth}), random(DType::bf16, {c.tokens * kRows, kWidth})};
    Tensor all[2][8];
    for (int apart = 0; apart < 2; ++apart) {
      const auto pause = [&] {
        if (apart == 1) wait();
      };
      for (int i = 0; i < 3; ++i) all[apart][i] = copy_of(first[i]);
      auto& [q, kv, cache, latent, carried, sums, values, out] = all[apart];
      latent = make(DType::f32, {c.tokens, kRank}), carried = make(DType::f32, {c.tokens, c.heads, kWidth});
      sums = make(DType::f32, {c.tokens, c.heads, kRank}), values = make(DType::f32, {c.tokens, c.heads * kValues});
      out = make(DType::f32, {c.tokens, kHidden});
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
                      pause);
      pause();
      const KvSegment segment = latent_segment(cache, kRows);
      ops.attention({.q = carried,
                     .segments = {&segment, 1},
                     .scale = 0.1,
                     .out = sums,
                     .batch = &batch,
                     .only_products = apart == 0});
      pause();
      ops.grouped_linear({.x = sums,
                          .weight = kv_b,
                          .group_rows = kNope + kValues,
                          .row_offset = kNope,
                          .rows = kValues,
                          .out = values.split_last(kValues)});
      pause();
      ops.linear({.x = values, .weight = o, .out = out});
      pause();
      ops.add({.a = out, .b = residual, .out = out});
      wait();
    }
    SCOPED_TRACE(testing::Message() << c.heads << " heads, " << c.tokens << " tokens, past " << c.past);
    EXPECT_TRUE(same_bits(all[0][2], all[1][2]));  // the caches
    expect_near(all[0][4], all[1][4], 1e-5);       // queries in latent space: other orders of the same sums
    for (int i = 5; i < 8; ++i) expect_near(all[0][i], all[1][i], 2e-3);
  }
}

/// What waits to be joined is joined, whatever comes next.
TEST_F(CudaLatents, PartsAreJoinedForWhoeverReadsThem) {
  constexpr std::int64_t kRank = kLatentRank, kWidth = kLatentWidth, kRows = 700, kHeads = 16, kTokens = 12;
  std::vector<Sequence> sequences;
  const Tensor table = make(DType::i32, {kTokens, 4});
  for (std::int32_t t = 0; t < kTokens; ++t) {
    sequences.push_back({.slot = t, .first_token = t, .tokens = 1, .past = 600});
    const std::int32_t row[4] = {t, t, 1, 600};
    std::memcpy(table.data + t * 16, row, sizeof row);
  }
  Batch batch;
  batch.tokens = kTokens;
  batch.sequences = sequences;
  batch.sequence_table = table;
  const Tensor q = random(DType::f32, {kTokens, kHeads, kWidth}),
               cache = random(DType::bf16, {kTokens * kRows, kWidth});
  const Weight wide = weight(64, kHeads * kRank);
  const KvSegment segment = latent_segment(cache, kRows);
  Tensor out[4], made[4];
  for (int way = 0; way < 4; ++way) {  // nothing, a copy, a product, an addition
    out[way] = make(DType::f32, {kTokens, kHeads * kRank});
    Ops& ops = backend_->ops();
    ops.attention(
        {.q = q, .segments = {&segment, 1}, .scale = 0.1, .out = out[way].split_last(kRank), .batch = &batch});
    made[way] = way == 2 ? make(DType::f32, {kTokens, 64}) : make(DType::f32, {kTokens, kHeads * kRank});
    if (way == 1) ops.copy({.x = out[way], .out = made[way]});
    if (way == 2) ops.linear({.x = out[way], .weight = wide, .out = made[way]});
    if (way == 3) ops.add({.a = out[way], .b = out[way], .out = made[way]});
    wait();
    EXPECT_TRUE(same_bits(out[way], out[0])) << way;
  }
  EXPECT_TRUE(same_bits(made[1], out[0]));
  for (std::int64_t i = 0; i < out[0].elements(); ++i) ASSERT_EQ(made[3].as<float>()[i], 2 * out[0].as<float>()[i]);
  const Tensor again = make(DType::f32, {kTokens, 64});
  backend_->ops().linear({.x = out[0], .weight = wide, .out = again});
  wait();
  EXPECT_TRUE(same_bits(made[2], again));
}

}  // namespace
}  // namespace fathom::test
