// Caches of 8 bits on backend cuda, where the registry of cases does not reach: steps that are recorded and launched
// again, and more rows than the workspace holds widened. Skipped where there is no device.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "backends/cuda_fixture.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary

class CudaCaches : public CudaTest, public testing::WithParamInterface<DType> {
 protected:
  Tensor random(Shape shape) {
    const Tensor x = make(DType::f32, shape);
    fill(x);
    return x;
  }
  /// Any values, row by row.
  void fill(const Tensor& x) {
    std::uniform_real_distribution<float> values(-1, 1);
    std::vector<double> all(static_cast<std::size_t>(x.elements()));
    for (double& value : all) value = values(random_);
    if (x.dtype == DType::i8) return put_int8_rows(x, all);
    for (std::int64_t i = 0; i < x.elements(); ++i)
      put_element(element_address(x, i), x.dtype, all[static_cast<std::size_t>(i)]);
  }
  /// [rows, heads, width] as an engine has it.
  Tensor cache(std::int64_t rows, std::int64_t heads, std::int64_t width) {
    const std::int64_t bytes = GetParam() == DType::i8 ? int8_row_bytes(heads, width) : heads * width;
    const Tensor x = make(GetParam(), {rows, bytes}).columns(0, heads * width).split_last(width);
    fill(x);
    return x;
  }
  /// The same of one head as [rows, width].
  static Tensor columns_of(Tensor x) {
    x.shape = {x.dim(0), x.dim(2)};
    x.strides = {x.strides[0], 1};
    return x;
  }
  /// A batch of these sequences, their table in shared memory.
  Batch batch_of(std::span<const Sequence> sequences) {
    Batch batch;
    batch.sequences = sequences;
    batch.sequence_table = make(DType::i32, {std::ssize(sequences), 4});
    std::memcpy(batch.sequence_table.data, sequences.data(), sequences.size_bytes());
    for (const Sequence& sequence : sequences) batch.tokens += sequence.tokens;
    return batch;
  }
  static void expect_near(const Tensor& got, const Tensor& want, double part) {
    ASSERT_EQ(got.shape, want.shape);
    double largest = 0, worst = 0;
    for (std::int64_t i = 0; i < want.elements(); ++i) {
      const double a = get_element(element_address(got, i), DType::f32),
                   b = get_element(element_address(want, i), DType::f32);
      ASSERT_TRUE(std::isfinite(a)) << i;
      largest = std::max(largest, std::abs(b)), worst = std::max(worst, std::abs(a - b));
    }
    EXPECT_GT(largest, 0);
    EXPECT_LE(worst, part * largest);
  }
};

INSTANTIATE_TEST_SUITE_P(EightBits, CudaCaches, testing::Values(DType::f8e4m3, DType::i8),
                         [](const auto& type) { return std::string(dtype_name(type.param)); });

struct CacheShape {
  const char* name;
  std::int64_t heads, kv_heads, dk, dr, dv;
  bool value_is_key;
};

// What a record launches later must see the keys that came since.
TEST_P(CudaCaches, RecordedStepsSeeTheKeysThatCameSince) {
  constexpr std::int64_t kRows = 300;
  std::uint64_t key = 1;
  for (const CacheShape& s : {CacheShape{"latents", 16, 1, 512, 64, 512, true},
                              {"small latents", 16, 1, 96, 32, 96, true},
                              {"streams", 4, 4, 64, 0, 64, false},
                              {"groups", 12, 2, 128, 0, 128, false},
                              {"wide group", 32, 2, 128, 0, 128, false},
                              {"odd", 6, 3, 24, 0, 24, false}}) {
    std::vector<Sequence> sequences = {{.slot = 2, .first_token = 0, .tokens = 1, .past = 1},
                                       {.slot = 0, .first_token = 1, .tokens = 1, .past = 3}};
    const Batch batch = batch_of(sequences);
    const Tensor k = cache(3 * kRows, s.kv_heads, s.dk),
                 v = s.value_is_key ? k.columns(0, s.dv) : cache(3 * kRows, s.kv_heads, s.dv),
                 shared = s.dr > 0 ? columns_of(cache(3 * kRows, 1, s.dr)) : Tensor{},
                 q = random({2, s.heads, s.dk + s.dr}), out = make(DType::f32, {2, s.heads, s.dv}),
                 want = make(DType::f32, {2, s.heads, s.dv});
    const KvSegment segment{
        .kind = KvSegment::Kind::kCache, .k = k, .k_shared = shared, .v = v, .rows_per_slot = kRows};
    const auto attend = [&](const Tensor& to) {
      backend_->ops().attention({.q = q, .segments = {&segment, 1}, .scale = 0.2, .out = to, .batch = &batch});
    };
    ++key;
    int launched = 0;
    for (const std::int32_t past : {3, 4, 40, 170, 299}) {
      sequences[1].past = past, sequences[0].past = past / 2;
      std::memcpy(batch.sequence_table.data, sequences.data(), 2 * sizeof(Sequence));
      const auto called = backend_->run_pass(key, [&] { attend(out); });
      ASSERT_TRUE(called.has_value()) << error_text(called.error());
      launched += *called ? 0 : 1;
      wait();
      attend(want);
      wait();
      EXPECT_EQ(std::memcmp(out.data, want.data, want.bytes()), 0) << s.name << " after " << past;
    }
    EXPECT_GE(launched, 2) << s.name;
  }
}

// Of slots so long that each is widened by itself, against the same rows in short ones.
TEST_P(CudaCaches, ManyLatentsAreWidenedSequenceBySequence) {
  constexpr std::int64_t kLong = 40000, kShort = 300, kRank = 512, kRope = 64, kHeads = 16;
  const std::vector<Sequence> sequences = {{.slot = 0, .first_token = 0, .tokens = 1, .past = 299},
                                           {.slot = 2, .first_token = 1, .tokens = 1, .past = 0},
                                           {.slot = 1, .first_token = 2, .tokens = 1, .past = 130}};
  const Batch batch = batch_of(sequences);
  // As an engine has them: in INT8 the rotated part has a scale of its own, behind that of the others.
  const bool scaled = GetParam() == DType::i8;
  const std::int64_t apart = scaled ? int8_row_bytes(1, kRank) : kRank,
                     bytes = apart + (scaled ? int8_row_bytes(1, kRope) : kRope);
  const Tensor few = make(GetParam(), {3 * kShort, bytes}), many = make(GetParam(), {3 * kLong, bytes}),
               q = random({3, kHeads, kRank + kRope});
  fill(few.columns(0, kRank)), fill(few.columns(apart, kRope));
  for (std::int64_t slot = 0; slot < 3; ++slot)
    std::memcpy(many.rows(slot * kLong, kShort).data, few.rows(slot * kShort, kShort).data,
                few.rows(0, kShort).bytes());
  Tensor out[2];
  for (int i = 0; i < 2; ++i) {
    const Tensor& cache = i == 0 ? few : many;
    out[i] = make(DType::f32, {3, kHeads, kRank});
    const Tensor keys = cache.columns(0, kRank).split_last(kRank);
    const KvSegment segment{.kind = KvSegment::Kind::kCache,
                            .k = keys,
                            .k_shared = cache.columns(apart, kRope),
                            .v = keys,
                            .rows_per_slot = i == 0 ? kShort : kLong};
    backend_->ops().attention({.q = q, .segments = {&segment, 1}, .scale = 0.1, .out = out[i], .batch = &batch});
  }
  wait();
  expect_near(out[1], out[0], 4e-3);  // weights are rounded relative to another largest score
}

// Rows of all key heads are more than there is room for: some heads at a time, against each head by itself.
TEST_P(CudaCaches, ManyKeyHeadsAreWidenedSomeAtATime) {
  constexpr std::int64_t kRows = 6000, kHeads = 64, kKvHeads = 32, kWidth = 128, kTokens = 40;
  const Sequence sequence{.slot = 0, .first_token = 0, .tokens = kTokens, .past = kRows - kTokens};
  const Batch batch = batch_of({&sequence, 1});
  const Tensor k = cache(kRows, kKvHeads, kWidth), v = cache(kRows, kKvHeads, kWidth),
               q = random({kTokens, kHeads, kWidth}), one_k = cache(kRows, 1, kWidth), one_v = cache(kRows, 1, kWidth);
  const auto heads = [](const Tensor& x, std::int64_t first, std::int64_t count) {
    Tensor part = x;
    part.data += first * x.strides[1] * dtype_bytes(x.dtype), part.shape.dims[1] = count;
    return part;
  };
  const auto take_head = [](const Tensor& from, std::int64_t head, const Tensor& to) {
    for (std::int64_t row = 0; row < kRows; ++row) {
      std::memcpy(to.rows(row, 1).data, from.rows(row, 1).data + head * kWidth, kWidth);
      if (from.dtype == DType::i8) *int8_scale(to, row, 0) = *int8_scale(from, row, head);
    }
  };
  const Tensor all = make(DType::f32, {kTokens, kHeads, kWidth}), apart = make(DType::f32, {kTokens, kHeads, kWidth});
  KvSegment segment{.kind = KvSegment::Kind::kCache, .k = k, .v = v, .rows_per_slot = kRows};
  backend_->ops().attention({.q = q, .segments = {&segment, 1}, .scale = 0.1, .out = all, .batch = &batch});
  constexpr std::int64_t kGroup = kHeads / kKvHeads;
  for (std::int64_t h = 0; h < kKvHeads; ++h) {
    wait();
    take_head(k, h, one_k), take_head(v, h, one_v);
    segment.k = one_k, segment.v = one_v;
    backend_->ops().attention({.q = heads(q, kGroup * h, kGroup),
                               .segments = {&segment, 1},
                               .scale = 0.1,
                               .out = heads(apart, kGroup * h, kGroup),
                               .batch = &batch});
  }
  wait();
  expect_near(all, apart, 4e-3);
}

}  // namespace
}  // namespace fathom::test
