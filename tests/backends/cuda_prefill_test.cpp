// Prefill on backend cuda: a layer of a dense model over many tokens, whose ops promise that only products read what
// they make (ops.h, `only_products`), against the same ops without promises. Skipped where there is no device.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "backends/cuda/cuda_backend.h"
#include "backends/reference/reference_backend.h"
#include "tensor/functions.h"

namespace fathom::test {
namespace {
using namespace fathom::tensor;  // NOLINT: the vocabulary

constexpr std::int64_t kHidden = 512, kKvHeads = 2, kDim = 128, kRows = 320;

class Room {
 public:
  explicit Room(Backend& backend) : backend_(backend) {}
  Tensor make(DType dtype, Shape shape) {
    Tensor x{.data = nullptr, .dtype = dtype, .shape = shape, .strides = {}, .root = 0};
    std::int64_t step = 1;
    for (int i = shape.rank - 1; i >= 0; --i) x.strides[static_cast<std::size_t>(i)] = step, step *= shape[i];
    auto buffer = backend_.allocate_buffer(static_cast<Bytes>(step * dtype_bytes(dtype)));
    EXPECT_TRUE(buffer.has_value());
    x.data = (*buffer)->data();
    buffers_.push_back(std::move(*buffer));
    return x;
  }
  Tensor random(DType dtype, Shape shape, float size) {
    const Tensor x = make(dtype, shape);
    std::vector<float> wide(static_cast<std::size_t>(x.elements()));
    std::vector<std::uint16_t> half(wide.size());
    for (std::size_t i = 0; i < wide.size(); ++i) {
      state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
      wide[i] = (static_cast<float>(state_ >> 40) * 0x1p-23f - 1.0f) * size;
      half[i] = f32_to_bf16(wide[i]);
    }
    const auto bytes = dtype == DType::f32 ? std::as_bytes(std::span(wide)) : std::as_bytes(std::span(half));
    EXPECT_TRUE(backend_.upload(x.data, bytes).has_value());
    return x;
  }
  Weight weight(std::int64_t rows, std::int64_t cols, DType dtype) {
    return {.format = dtype == DType::f32 ? WeightFormat::f32 : WeightFormat::bf16,
            .rows = rows,
            .cols = cols,
            .data = random(dtype, {rows, cols}, 2.0f / std::sqrt(static_cast<float>(cols))).data};
  }
  Tensor ints(Shape shape, const std::vector<std::int32_t>& values) {
    const Tensor x = make(DType::i32, shape);
    EXPECT_TRUE(backend_.upload(x.data, std::as_bytes(std::span(values))).has_value());
    return x;
  }
  std::vector<float> read(const Tensor& x) {
    EXPECT_TRUE(backend_.synchronize().has_value());
    std::vector<std::byte> bytes(x.bytes());
    EXPECT_TRUE(backend_.download(bytes, x.data).has_value());
    std::vector<float> out(static_cast<std::size_t>(x.elements()));
    for (std::size_t i = 0; i < out.size(); ++i) {
      std::uint16_t half = 0;
      if (x.dtype == DType::f32)
        std::memcpy(&out[i], &bytes[4 * i], 4);
      else
        std::memcpy(&half, &bytes[2 * i], 2), out[i] = bf16_to_f32(half);
    }
    return out;
  }

 private:
  Backend& backend_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::uint64_t state_ = 88172645463325252ull;
};

struct Made {
  std::vector<float> attended, out, keys, values;
};

/// Two sequences, one of which has a past.
struct LayerShape {
  std::int32_t first, second;  // tokens of each
  std::int64_t heads, inner;
};
constexpr LayerShape kMany{200, 150, 4, 1024}, kSome{20, 13, 16, 4096};

/// `down` may be f32: a promise that cannot be kept in 16 bits.
Made run_layer(Backend& backend, bool promises, DType down_type, const LayerShape& shape) {
  Room room(backend);
  Ops& ops = backend.ops();
  const std::int64_t kHeads = shape.heads, kInner = shape.inner;
  const std::vector<Sequence> sequences{{.slot = 1, .first_token = 0, .tokens = shape.first, .past = 0},
                                        {.slot = 0, .first_token = shape.first, .tokens = shape.second, .past = 70}};
  std::vector<std::int32_t> table, positions;
  for (const Sequence& s : sequences) {
    table.insert(table.end(), {s.slot, s.first_token, s.tokens, s.past});
    for (int i = 0; i < s.tokens; ++i) positions.push_back(s.past + i);
  }
  Batch batch;
  batch.tokens = std::ssize(positions);
  batch.sequences = sequences;
  batch.sequence_table = room.ints({2, 4}, table);
  const std::int64_t tokens = batch.tokens;
  const Tensor x = room.random(DType::f32, {tokens, kHidden}, 2), norm = room.random(DType::bf16, {kHidden}, 1);
  const Tensor normed = room.make(DType::f32, {tokens, kHidden});
  const auto rows = [&](std::int64_t width) { return room.make(DType::f32, {tokens, width}); };
  const Tensor q = rows(kHeads * kDim), k = rows(kKvHeads * kDim), v = rows(kKvHeads * kDim);
  const Tensor o = room.make(DType::f32, {tokens, kHeads, kDim}), gate = rows(kInner), up = rows(kInner),
               out = rows(kHidden);
  const Tensor keys = room.random(DType::bf16, {2 * kRows, kKvHeads * kDim}, 1),
               values = room.random(DType::bf16, {2 * kRows, kKvHeads * kDim}, 1);
  const Tensor cosines = room.random(DType::f32, {tokens, kDim / 2}, 1),
               sines = room.random(DType::f32, {tokens, kDim / 2}, 1);
  const Weight wq = room.weight(kHeads * kDim, kHidden, DType::bf16),
               wk = room.weight(kKvHeads * kDim, kHidden, DType::bf16),
               wv = room.weight(kKvHeads * kDim, kHidden, DType::bf16),
               wo = room.weight(kHidden, kHeads * kDim, DType::bf16),
               both = room.weight(2 * kInner, kHidden, DType::bf16), wd = room.weight(kHidden, kInner, down_type);
  Weight wg = both, wu = both;  // one after the other, as loaded ones often are
  wg.rows = wu.rows = kInner;
  wu.data = both.data + 2 * kInner * kHidden;
  const auto product = [&](const Tensor& from, const Weight& weight, const Tensor& to) {
    ops.linear({.x = from, .weight = weight, .bias = {}, .out = to});
  };
  ops.rms_norm({.x = x, .weight = norm, .eps = 1e-6, .out = normed, .only_products = promises});
  product(normed, wq, q);
  product(normed, wk, k);
  product(normed, wv, v);
  ops.rope({.x = q.split_last(kDim), .cos = cosines, .sin = sines});
  ops.rope({.x = k.split_last(kDim), .cos = cosines, .sin = sines});
  ops.cache_write({.src = k, .cache = keys, .rows_per_slot = kRows, .batch = &batch});
  ops.cache_write({.src = v, .cache = values, .rows_per_slot = kRows, .batch = &batch});
  const KvSegment segment{.kind = KvSegment::Kind::kCache,
                          .k = keys.split_last(kDim),
                          .v = values.split_last(kDim),
                          .rows_per_slot = kRows};
  ops.attention({.q = q.split_last(kDim),
                 .segments = {&segment, 1},
                 .scale = 0.088,
                 .out = o,
                 .batch = &batch,
                 .only_products = promises});
  Made made;
  made.attended = promises ? std::vector<float>{} : room.read(o);  // a promise: nobody looks
  const Tensor middle = rows(kHidden);
  product(o.join_last(), wo, middle);
  ops.add({.a = middle, .b = x, .out = middle});
  ops.rms_norm({.x = middle, .weight = norm, .eps = 1e-6, .out = normed, .only_products = promises});
  product(normed, wg, gate);
  product(normed, wu, up);
  ops.swiglu({.gate = gate, .up = up, .out = gate, .only_products = promises});
  product(gate, wd, out);
  ops.add({.a = out, .b = middle, .out = out});
  made.out = room.read(out), made.keys = room.read(keys), made.values = room.read(values);
  return made;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    worst = difference <= worst ? worst : std::isnan(difference) ? INFINITY : difference;
  }
  return worst;
}

double largest_of(const std::vector<float>& values) {
  double largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(static_cast<double>(value)));
  return largest;
}

TEST(CudaPrefill, PromisesChangeNothingButRounding) {
  if (const std::string why = cuda::why_unavailable(); !why.empty()) GTEST_SKIP() << why;
  auto backend = cuda::make_cuda_backend({});
  ASSERT_TRUE(backend.has_value()) << error_text(backend.error());
  run_layer(**backend, false, DType::bf16, kMany);  // from now on norms know which type comes
  for (const LayerShape& shape : {kMany, kSome})
    for (const DType down : {DType::bf16, DType::f32}) {
      const Made plain = run_layer(**backend, false, down, shape), promised = run_layer(**backend, true, down, shape);
      EXPECT_EQ(largest_difference(plain.keys, promised.keys), 0.0);
      EXPECT_EQ(largest_difference(plain.values, promised.values), 0.0);
      const double largest = largest_of(plain.out);
      ASSERT_GT(largest, 1.0);
      // Gate and up, rounded to bf16: 2^-9 each, in sums of `inner`.
      EXPECT_LE(largest_difference(plain.out, promised.out), down == DType::bf16 ? 0.01 * largest : 0.0);
      EXPECT_EQ(largest_difference(run_layer(**backend, true, down, shape).out, promised.out), 0.0)
          << "not the same twice";
    }
}

TEST(CudaPrefill, SomeTokensAgreeWithReference) {
  if (const std::string why = cuda::why_unavailable(); !why.empty()) GTEST_SKIP() << why;
  auto backend = cuda::make_cuda_backend({});
  ASSERT_TRUE(backend.has_value()) << error_text(backend.error());
  const auto reference = std::move(*reference::make_reference_backend({}));
  run_layer(**backend, false, DType::bf16, kSome);
  const Made wanted = run_layer(*reference, false, DType::bf16, kSome);
  // Activations of every product are rounded to bf16.
  EXPECT_LE(largest_difference(run_layer(**backend, true, DType::bf16, kSome).out, wanted.out),
            0.02 * largest_of(wanted.out));
}

}  // namespace
}  // namespace fathom::test
