// Layers of one token, in every format of weights and caches that have kernels of their own, give what their ops give
// one by one: waiting between them keeps them apart. Caches lie where a model's do, and behind their last row are NaNs.
// Skipped where there is no device.
#include <sstream>

#include "backends/cuda_fixture.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary

struct Model {
  WeightFormat format;
  DType cache;
  std::int64_t heads, kv_heads, width, hidden, inner;
  std::int32_t past;
  bool bias = false, interleaved = false;
  int layers = 3, stages = 5;  // of a layer, launched together: three products, attention, one product, two, one
};

class CudaLayers : public CudaTest, public testing::WithParamInterface<Model> {
 protected:
  /// A slot's rows from `from` on become NaNs; of INT8 their scales do.
  static void spoil(const Tensor& cache, std::int64_t from, std::int64_t to) {
    std::memset(cache.rows(from, to - from).data, 0xff, static_cast<std::size_t>(cache.rows(from, to - from).bytes()));
  }
  /// A cache as it is, on the device.
  Tensor moved(const Tensor& cache) {
    Tensor there = cache;
    there.data = on_device(cache);
    return there;
  }
  /// One row of a cache on the device, widened.
  Tensor read_row(const Tensor& cache, std::int64_t row, std::int64_t heads, std::int64_t width) {
    const Tensor bytes = make(cache.dtype, {1, cache.dim(1)}), out = make(DType::f32, {1, heads * width});
    if (!backend_->download({bytes.data, static_cast<std::size_t>(bytes.bytes())}, cache.rows(row, 1).data))
      std::abort();
    const Tensor rows = bytes.columns(0, heads * width).split_last(width);
    for (std::int64_t i = 0; i < out.elements(); ++i)
      out.as<float>()[i] = static_cast<float>(
          cache.dtype == DType::i8 ? static_cast<double>(*scale_of_element(rows, i)) * rows.as<std::int8_t>()[i]
                                   : get_element(rows.data + i * dtype_bytes(rows.dtype), rows.dtype));
    return out;
  }
};

TEST_P(CudaLayers, OfOneTokenLaunchedTogetherGiveWhatTheirOpsGive) {
  const Model& m = GetParam();
  const std::int64_t rows = std::max(m.past + 5, 64), q_width = m.heads * m.width, kv_width = m.kv_heads * m.width;
  const Sequence sequence{.slot = 1, .first_token = 0, .tokens = 1, .past = m.past};
  const std::int32_t row[4] = {1, 0, 1, m.past};
  const Tensor table = make(DType::i32, {1, 4}), cosines = make(DType::f32, {1, m.width / 2}),
               sines = make(DType::f32, {1, m.width / 2});
  std::memcpy(table.data, row, sizeof row);
  for (std::int64_t i = 0; i < m.width / 2; ++i)
    cosines.as<float>()[i] = std::cos(static_cast<float>(i)), sines.as<float>()[i] = std::sin(static_cast<float>(i));
  Batch batch;
  batch.tokens = 1;
  batch.sequences = {&sequence, 1};
  batch.sequence_table = table;
  struct Layer {
    Weight q, k, v, o, gate, up, down;
    Tensor norms[2], bias, caches[2];
  };
  std::vector<Layer> layers;
  const auto cache = [&] {
    const Tensor all = random_cache(m.cache, 2 * rows, m.kv_heads, m.width);
    spoil(all, rows + m.past, 2 * rows);
    return all;
  };
  for (int i = 0; i < m.layers; ++i)
    layers.push_back({.q = weight(m.format, q_width, m.hidden),
                      .k = weight(m.format, kv_width, m.hidden),
                      .v = weight(m.format, kv_width, m.hidden),
                      .o = weight(m.format, m.hidden, q_width),
                      .gate = weight(m.format, m.inner, m.hidden),
                      .up = weight(m.format, m.inner, m.hidden),
                      .down = weight(m.format, m.hidden, m.inner),
                      .norms = {random(DType::bf16, {m.hidden}), random(DType::f32, {m.hidden})},
                      .bias = m.bias ? random(DType::bf16, {q_width}) : Tensor{},
                      .caches = {cache(), cache()}});
  const Weight head = weight(WeightFormat::bf16, 1000, m.hidden);
  const Tensor first = random(DType::f32, {1, m.hidden});

  /// What a layer makes.
  struct Made {
    Tensor q, k, v, attended, middle, gate, up, out, caches[2];
  };
  const auto tensors = [&] {
    std::vector<Made> all;
    for (const Layer& layer : layers)
      all.push_back({.q = make(DType::f32, {1, q_width}),
                     .k = make(DType::f32, {1, kv_width}),
                     .v = make(DType::f32, {1, kv_width}),
                     .attended = make(DType::f32, {1, q_width}),
                     .middle = make(DType::f32, {1, m.hidden}),
                     .gate = make(DType::f32, {1, m.inner}),
                     .up = make(DType::f32, {1, m.inner}),
                     .out = make(DType::f32, {1, m.hidden}),
                     .caches = {moved(layer.caches[0]), moved(layer.caches[1])}});
    return all;
  };
  const auto pass = [&](const std::vector<Made>& made, const Tensor& x, const Tensor& logits, bool apart) {
    Ops& ops = backend_->ops();
    const auto pause = [&] {
      if (apart) wait();
    };
    Tensor h = first;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const Layer& layer = layers[i];
      const auto& [q, k, v, attended, middle, gate, up, out, caches] = made[i];
      const Tensor keys = caches[0].columns(0, kv_width).split_last(m.width),
                   values = caches[1].columns(0, kv_width).split_last(m.width);
      ops.rms_norm({.x = h, .weight = layer.norms[0], .eps = 1e-6, .out = x, .only_products = !apart});
      pause();
      ops.linear({.x = x, .weight = layer.q, .bias = layer.bias, .out = q});
      pause();
      ops.linear({.x = x, .weight = layer.k, .out = k});
      pause();
      ops.linear({.x = x, .weight = layer.v, .out = v});
      pause();
      ops.rope({.x = q.split_last(m.width), .cos = cosines, .sin = sines, .interleaved = m.interleaved});
      ops.rope({.x = k.split_last(m.width), .cos = cosines, .sin = sines, .interleaved = m.interleaved});
      ops.cache_write({.src = k.split_last(m.width), .cache = keys, .rows_per_slot = rows, .batch = &batch});
      ops.cache_write({.src = v.split_last(m.width), .cache = values, .rows_per_slot = rows, .batch = &batch});
      pause();
      const KvSegment segment{.kind = KvSegment::Kind::kCache, .k = keys, .v = values, .rows_per_slot = rows};
      ops.attention({.q = q.split_last(m.width),
                     .segments = {&segment, 1},
                     .scale = 0.1,
                     .out = attended.split_last(m.width),
                     .batch = &batch,
                     .only_products = !apart});
      pause();
      ops.linear({.x = attended, .weight = layer.o, .out = middle});
      pause();
      ops.add({.a = middle, .b = h, .out = middle});
      pause();
      ops.rms_norm({.x = middle, .weight = layer.norms[1], .eps = 1e-6, .out = x, .only_products = !apart});
      pause();
      ops.linear({.x = x, .weight = layer.gate, .out = gate});
      pause();
      ops.linear({.x = x, .weight = layer.up, .out = up});
      pause();
      ops.swiglu({.gate = gate, .up = up, .out = gate});
      pause();
      ops.linear({.x = gate, .weight = layer.down, .out = out});
      pause();
      ops.add({.a = out, .b = middle, .out = out});
      pause();
      h = out;
    }
    ops.rms_norm({.x = h, .weight = layers[0].norms[0], .eps = 1e-6, .out = x});
    pause();
    ops.linear({.x = x, .weight = head, .out = logits});
  };

  const Tensor x = make(DType::f32, {1, m.hidden}),
               logits[2] = {make(DType::f32, {1, 1000}), make(DType::f32, {1, 1000})};
  const std::vector<Made> made[2] = {tensors(), tensors()};
  // As it is, then recorded and launched, then launched again: the same bits each time. Launches of few stages are not
  // made a second time (stages.h), and round otherwise.
  const bool made_again = m.stages == 5 && m.layers > 1;
  int replayed = 0;
  Tensor before;
  for (int turn = 0; turn < 3; ++turn) {
    std::memset(logits[0].data, 0xff, static_cast<std::size_t>(logits[0].bytes()));
    const auto called = backend_->run_pass(1, [&] { pass(made[0], x, logits[0], false); });
    ASSERT_TRUE(called.has_value()) << error_text(called.error());
    wait();
    replayed += *called ? 0 : 1;
    if (const auto launched = cuda::stages_launched(*backend_); launched && turn == 0) {
      EXPECT_EQ(*launched, m.stages * m.layers);
    }
    if (turn > (made_again ? 0 : 1))
      EXPECT_TRUE(same_bits(logits[0], before)) << "turn " << turn;
    else
      before = copy_of(logits[0]);
  }
  EXPECT_GE(replayed, 1);
  const auto launched = cuda::stages_launched(*backend_);
  pass(made[1], x, logits[1], true);
  wait();
  EXPECT_EQ(cuda::stages_launched(*backend_), launched) << "launched apart";

  expect_near(logits[0], logits[1], m.cache == DType::f16 ? 2e-3 : 1e-2);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "layer " << i);
    const Made &got = made[0][i], &want = made[1][i];
    for (const int which : {0, 1})  // one may round otherwise
      expect_near(read_row(got.caches[which], rows + m.past, m.kv_heads, m.width),
                  read_row(want.caches[which], rows + m.past, m.kv_heads, m.width),
                  m.cache == DType::f8e4m3 ? 0.13 : 1e-2);
    if (i == 0) {  // of no cache's row
      const bool e4m3 = m.format == WeightFormat::fp8_row || m.format == WeightFormat::fp8_block128;
      expect_near(got.v, want.v, e4m3 ? 2e-3 : m.format == WeightFormat::bf16 ? 5e-5 : 2e-5);
    }
    // A row of the cache may round otherwise: in bf16 by 2^-7.
    for (const auto& [one, other] : {std::pair{&got.attended, &want.attended},
                                     {&got.middle, &want.middle},
                                     {&got.gate, &want.gate},
                                     {&got.out, &want.out}})
      expect_near(*one, *other, m.cache == DType::f16 ? 2e-3 : 1e-2);
  }
}

using F = tensor::WeightFormat;
constexpr Model kModels[] = {
    {F::bf16, DType::bf16, 16, 16, 128, 2048, 2048, 0},
    {F::bf16, DType::f16, 32, 32, 128, 4096, 2816, 511},
    {F::bf16, DType::bf16, 28, 4, 128, 3584, 2048, 300, true, false, 2},
    {F::bf16, DType::f8e4m3, 32, 32, 64, 2048, 2304, 700, false, true},
    {F::bf16, DType::i8, 32, 32, 128, 4096, 1408, 9},
    {F::bf16, DType::f16, 16, 16, 128, 2048, 2048, 40},
    {F::fp8_row, DType::bf16, 8, 8, 128, 1024, 2816, 77},
    {F::fp8_row, DType::i8, 8, 4, 128, 1024, 1040, 33, false, false, 3,
     4},  // rows of 1040 bytes are no whole stretches
    {F::fp8_block128, DType::f8e4m3, 16, 16, 128, 2048, 5632, 513},
    {F::int8_row, DType::i8, 6, 3, 128, 768, 2048, 130, true},
    {F::int8_row, DType::bf16, 8, 8, 64, 512, 11008, 1},
    {F::int8_row, DType::f8e4m3, 8, 2, 128, 1024, 2048, 3100},
    {F::int8_row, DType::f16, 4, 4, 128, 512, 36864, 20, false, false, 1, 4},  // x of 36864 columns has no room
    {F::int4_group128, DType::bf16, 32, 32, 128, 4096, 11008, 600},
    {F::int4_group128_zero, DType::f16, 8, 4, 128, 1024, 2816, 40, false, true},
    {F::int4_group128_zero_f16, DType::i8, 6, 3, 128, 768, 1280, 255},
    {F::int4_group128_zero_f16, DType::f16, 3, 3, 128, 384, 640, 255, false, false, 3, 0},  // rows of 192 bytes
    {F::int4_group128_f16, DType::bf16, 160, 40, 64, 1280, 1280, 90, false, false, 2},
    {F::int4_group128, DType::bf16, 64, 8, 128, 8192, 28672, 200, false, false, 1}};
INSTANTIATE_TEST_SUITE_P(Models, CudaLayers, testing::ValuesIn(kModels), [](const auto& model) {
  const Model& m = model.param;
  std::ostringstream name;
  name << weight_format_name(m.format) << "_cache_" << dtype_name(m.cache) << "_hidden_" << m.hidden << "_past_"
       << m.past;
  return name.str();
});

}  // namespace
}  // namespace fathom::test
