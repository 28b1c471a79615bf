#include "measure/kernels.h"

#include <algorithm>
#include <functional>
#include <vector>

#include "backends/backends.h"
#include "base/clock.h"
#include "measure/statistics.h"
#include "model/architecture.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary

constexpr Bytes kWeights = 256 * kMiB;
constexpr std::int64_t kProductFlops = 16'000'000'000;  // of a run of large products: some tens of milliseconds
constexpr std::int64_t kMostTokens = 512;

/// The median of a few runs, after one that does not count.
double median_seconds(int runs, const std::function<void()>& body) {
  body();
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) {
    const double started = now_seconds();
    body();
    seconds.push_back(now_seconds() - started);
  }
  return median(std::move(seconds));
}

Value filled(Ops& ops, Shape shape) {
  Value value(ops, ops.allocate(DType::f32, shape));
  for (std::int64_t i = 0; i < shape.elements(); ++i)
    value->as<float>()[i] = static_cast<float>(i * 7919 % 1000 - 500) / 500.0f;
  return value;
}

/// The beginning of a vector as a matrix.
Tensor matrix_view(const Tensor& vector, std::int64_t rows, std::int64_t cols) {
  Tensor matrix = vector;
  matrix.shape = {rows, cols};
  matrix.strides = {cols, 1};
  return matrix;
}

/// Small numbers of either sign in the given format.
void fill_weights(std::byte* data, Bytes bytes, WeightFormat format) {
  std::uint32_t state = 1;
  const auto next = [&] {
    state = state * 1664525u + 1013904223u;
    return (static_cast<float>(state >> 8) * 0x1p-24f - 0.5f) * 0.05f;
  };
  if (format == WeightFormat::f32) {
    for (Bytes i = 0; i < bytes / 4; ++i) reinterpret_cast<float*>(data)[i] = next();
  } else {
    for (Bytes i = 0; i < bytes / 2; ++i)
      reinterpret_cast<std::uint16_t*>(data)[i] =
          format == WeightFormat::bf16 ? f32_to_bf16(next()) : f32_to_f16(next());
  }
}

}  // namespace

Result<KernelShapes> shapes_of(const model::ModelSpec& spec, WeightFormat format) {
  KernelShapes shapes{
      .format = format, .matrices = {}, .hidden = spec.hidden, .heads = spec.heads, .prefill = {}, .decode = {}};
  shapes.prefill = shapes.decode = {.kv_heads = spec.kv_heads, .k_dim = spec.head_dim, .v_dim = spec.head_dim};
  FATHOM_TRY(const auto architecture, model::make_architecture(spec));
  for (const model::WeightEntry& entry : architecture->weights().entries())
    if (entry.layer >= 0 && !entry.vector && !entry.per_expert && entry.part == model::WeightPart::kMain)
      shapes.matrices.push_back({entry.rows, entry.cols});
  if (spec.routing.experts > 0) {
    shapes.inner = spec.expert_intermediate;
    shapes.experts = spec.routing.experts;
    shapes.top_k = spec.routing.top_k;
  }
  if (spec.kv_lora_rank > 0) {
    shapes.prefill = {
        .kv_heads = spec.heads, .k_dim = spec.qk_nope_dim, .shared_dim = spec.qk_rope_dim, .v_dim = spec.v_head_dim};
    shapes.decode = {.kv_heads = 1,
                     .k_dim = spec.kv_lora_rank,
                     .shared_dim = spec.qk_rope_dim,
                     .v_dim = spec.kv_lora_rank,
                     .v_in_k = true};
  }
  return shapes;
}

struct KernelMeter::State {
  KernelShapes shapes;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Buffer> buffer;
  std::vector<Weight> dense, gate, up, down;
  std::size_t next = 0;  // matrix that comes next: weights shall come from memory, not from a cache

  Bytes matrix_bytes(std::int64_t rows, std::int64_t cols) const { return weight_bytes(shapes.format, rows, cols); }
  Weight cut(std::byte*& at, std::int64_t rows, std::int64_t cols) const {
    const Weight weight{.format = shapes.format, .rows = rows, .cols = cols, .data = at};
    at += matrix_bytes(rows, cols);
    return weight;
  }
  Status fill() {
    const Bytes expert = 3 * matrix_bytes(shapes.inner, shapes.hidden);
    Bytes largest = 0;
    for (const auto& matrix : shapes.matrices) largest = std::max(largest, matrix_bytes(matrix.rows, matrix.cols));
    const std::int64_t experts = std::clamp<std::int64_t>(static_cast<std::int64_t>(kWeights / expert), shapes.top_k,
                                                          std::max(shapes.experts, shapes.top_k) * 8);
    const Bytes bytes = std::max({kWeights, 2 * largest, static_cast<Bytes>(experts) * expert});
    FATHOM_TRY(buffer, backend->allocate_buffer(bytes));
    fill_weights(buffer->data(), bytes, shapes.format);
    std::byte* at = buffer->data();
    for (std::size_t i = 0;; ++i) {
      const auto& matrix = shapes.matrices[i % shapes.matrices.size()];
      if (at + matrix_bytes(matrix.rows, matrix.cols) > buffer->data() + bytes) break;
      dense.push_back(cut(at, matrix.rows, matrix.cols));
    }
    at = buffer->data();
    for (std::int64_t e = 0; e < experts; ++e) {
      gate.push_back(cut(at, shapes.inner, shapes.hidden));
      up.push_back(cut(at, shapes.inner, shapes.hidden));
      down.push_back(cut(at, shapes.hidden, shapes.inner));
    }
    return {};
  }

  /// Elements of weights a second, in products of `tokens` rows with matrices of together about `elements` elements.
  double products(std::int64_t tokens, double elements, int runs) {
    Ops& ops = backend->ops();
    std::int64_t widest = 0, tallest = 0;
    for (const Weight& weight : dense) widest = std::max(widest, weight.cols), tallest = std::max(tallest, weight.rows);
    const Value x = filled(ops, {tokens * widest}), out(ops, ops.allocate(DType::f32, {tokens * tallest}));
    std::vector<double> rates;
    for (int run = 0; run <= runs;
         ++run) {  // each goes on where the last one stopped, through weights that no cache holds
      double done = 0;
      const double started = now_seconds();
      for (; done < elements; ++next) {
        const Weight& weight = dense[next % dense.size()];
        ops.linear(
            {.x = matrix_view(x, tokens, weight.cols), .weight = weight, .out = matrix_view(out, tokens, weight.rows)});
        done += static_cast<double>(weight.rows * weight.cols);
      }
      if (run > 0) rates.push_back(done / (now_seconds() - started));
    }
    return median(std::move(rates));
  }

  /// Seconds of one layer of `layer` experts, when there is room for several layers of different ones: choices go
  /// round.
  double experts(std::int64_t tokens, std::size_t layer, int runs) {
    Ops& ops = backend->ops();
    const std::int64_t k = shapes.top_k;
    const Value x = filled(ops, {tokens, shapes.hidden}), out(ops, ops.allocate(DType::f32, {tokens, shapes.hidden}));
    const Value indices(ops, ops.allocate(DType::i32, {tokens, k})),
        weights(ops, ops.allocate(DType::f32, {tokens, k}));
    std::fill_n(weights->as<float>(), tokens * k, 1.0f / static_cast<float>(k));
    for (std::int64_t i = 0; i < tokens * k; ++i)
      indices->as<std::int32_t>()[i] = static_cast<std::int32_t>(static_cast<std::size_t>(i) % layer);
    const std::size_t layers = std::max<std::size_t>(gate.size() / layer, 1);
    return median_seconds(runs,
                          [&] {
                            for (std::size_t l = 0; l < layers; ++l) {
                              const std::size_t first = l * layer;
                              ops.experts({.x = x,
                                           .indices = indices,
                                           .weights = weights,
                                           .gate = std::span(gate).subspan(first, layer),
                                           .up = std::span(up).subspan(first, layer),
                                           .down = std::span(down).subspan(first, layer),
                                           .total_experts = static_cast<std::int64_t>(layer),
                                           .out = out});
                            }
                          }) /
           static_cast<double>(layers);
  }

  /// Seconds of the attention of `sequences` sequences of `tokens` new tokens, the last of `keys` rows, over fresh rows
  /// or cached ones.
  double attention(const KernelShapes::Attention& shape, std::int64_t sequences, std::int64_t tokens, std::int64_t keys,
                   int runs) {
    Ops& ops = backend->ops();
    const bool fresh = tokens == keys;
    const std::int64_t rows = sequences * tokens, cached = sequences * keys;
    const auto make = [&](Shape of) {
      Value value(ops, ops.allocate(fresh ? DType::f32 : DType::bf16, of));
      ops.copy({.x = filled(ops, of), .out = value});
      return value;
    };
    const Value q = filled(ops, {rows, shapes.heads, shape.k_dim + shape.shared_dim}),
                out(ops, ops.allocate(DType::f32, {rows, shapes.heads, shape.v_dim}));
    const Value k = make({cached, shape.kv_heads, shape.k_dim}),
                v = shape.v_in_k ? Value() : make({cached, shape.kv_heads, shape.v_dim});
    const Value shared = shape.shared_dim > 0 ? make({cached, shape.shared_dim}) : Value();
    std::vector<Sequence> parts;
    for (std::int64_t s = 0; s < sequences; ++s)
      parts.push_back({.slot = static_cast<std::int32_t>(s),
                       .first_token = static_cast<std::int32_t>(s * tokens),
                       .tokens = static_cast<std::int32_t>(tokens),
                       .past = static_cast<std::int32_t>(keys - tokens)});
    Batch batch;
    batch.tokens = rows;
    batch.sequences = parts;
    Tensor values = shape.v_in_k ? k : v;
    values.shape.dims[2] = shape.v_dim;
    const KvSegment segment{.kind = fresh ? KvSegment::Kind::kFresh : KvSegment::Kind::kCache,
                            .k = k,
                            .k_shared = shared,
                            .v = values,
                            .rows_per_slot = fresh ? 0 : keys};
    return median_seconds(runs, [&] {
      ops.attention({.q = q, .segments = {&segment, 1}, .scale = 0.0884, .out = out, .batch = &batch});
    });
  }

  /// Seconds of an add, a norm and a gated activation over [tokens, hidden], on one buffer after the other as in a
  /// model's arena.
  double elementwise(std::int64_t tokens, int runs) {
    Ops& ops = backend->ops();
    constexpr std::size_t kBuffers = 9;  // three runs of the three ops
    std::vector<Value> ring;
    for (std::size_t i = 0; i < kBuffers; ++i) ring.push_back(filled(ops, {tokens, shapes.hidden}));
    return median_seconds(runs,
                          [&] {
                            for (std::size_t i = 0; i < kBuffers; i += 3) {
                              ops.add({.a = ring[i], .b = ring[i + 1], .out = ring[i + 2]});
                              ops.rms_norm({.x = ring[i + 2], .eps = 1e-6, .out = ring[(i + 3) % kBuffers]});
                              ops.swiglu({.gate = ring[i + 1], .up = ring[i + 2], .out = ring[(i + 4) % kBuffers]});
                            }
                          }) /
           3;  // three of each
  }
};

KernelMeter::KernelMeter(std::unique_ptr<State> state) : state_(std::move(state)) {}
KernelMeter::KernelMeter(KernelMeter&&) noexcept = default;
KernelMeter& KernelMeter::operator=(KernelMeter&&) noexcept = default;
KernelMeter::~KernelMeter() = default;

Result<KernelMeter> KernelMeter::create(const std::string& device, const std::string& isa, int threads,
                                        const KernelShapes& shapes) {
  auto state = std::make_unique<State>();
  state->shapes = shapes;
  FATHOM_TRY(state->backend, backends::make_backend(device, {.threads = threads, .isa = isa}));
  FATHOM_TRY_VOID(state->fill());
  return KernelMeter(std::move(state));
}

plan::KernelRates KernelMeter::measure(const KernelLoad& load) {
  State& s = *state_;
  const KernelShapes& shapes = s.shapes;
  const std::int64_t tokens = std::clamp<std::int64_t>(load.tokens, 1, kMostTokens);
  const auto of = [](auto... factors) { return (1.0 * ... * static_cast<double>(factors)); };
  const double width = of(dtype_bits(weight_dtype(shapes.format))) / 8, expert = of(3, shapes.hidden, shapes.inner);
  plan::KernelRates rates;
  double held = 0;
  for (const Weight& weight : s.dense) held += of(weight.rows, weight.cols);
  rates.product_flops = 2 * of(tokens) * s.products(tokens, std::min(held, of(kProductFlops) / (2 * of(tokens))), 3);
  rates.stream_bytes = width * s.products(load.batch, held, 3);
  const std::size_t layer = std::min(s.gate.size(), static_cast<std::size_t>(std::max(shapes.experts, shapes.top_k)));
  const std::int64_t routed =
      std::max<std::int64_t>(tokens * static_cast<std::int64_t>(layer) / std::max(shapes.experts, shapes.top_k), 1);
  rates.expert_flops = 2 * of(routed, shapes.top_k) * expert / s.experts(routed, layer, 3);
  const std::size_t few =
      static_cast<std::size_t>(std::min<std::int64_t>(load.batch * shapes.top_k, static_cast<std::int64_t>(layer)));
  rates.expert_bytes = width * of(few) * expert / s.experts(load.batch, few, 3);
  rates.attention_keys = of(tokens);
  const auto row_dims = [](const KernelShapes::Attention& shape) {
    return shape.k_dim + shape.shared_dim + shape.v_dim;
  };
  rates.attention_flops = of(shapes.heads, row_dims(shapes.prefill), tokens, tokens + 1) /
                          s.attention(shapes.prefill, 1, tokens, tokens, 3);
  const std::int64_t context = std::max<std::int64_t>(load.context, 2);
  rates.decode_attention_flops = 2 * of(load.batch, shapes.heads, row_dims(shapes.decode), context) /
                                 s.attention(shapes.decode, load.batch, 1, context, 9);
  rates.elementwise_bytes = 8 * 4 * of(tokens, shapes.hidden) / s.elementwise(tokens, 5);
  return rates;
}

Result<plan::KernelRates> cpu_kernels() {
  FATHOM_TRY(KernelMeter meter, KernelMeter::create("cpu", "", 0, {}));
  return meter.measure({.tokens = 512, .batch = 1, .context = 3584});
}

}  // namespace fathom::measure
