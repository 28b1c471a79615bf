// How near the cuda backend's kernels come to what the device can do: attention of prefill and of decoding, latent
// attention, mixtures of experts and dense products at the shapes of real models, each as a share of 4.27 TB/s, or of
// 781 TFLOP/s (e4m3: 1417; an H200's, measured). usage: bench_cuda_kernels [part of a name]…
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backends/cuda/cuda_backend.h"

namespace {

using namespace fathom;
using namespace fathom::tensor;

constexpr double kBytesPerSecond = 4.27e12, kFlopsPerSecond = 781e12, kFlopsOfFp8 = 1417e12;

template <class T>
T need(Result<T> result) {
  if (result) return std::move(*result);
  std::fprintf(stderr, "%s\n", error_text(result.error()).c_str());
  std::exit(2);
}
void need(const Status& status) {
  if (status) return;
  std::fprintf(stderr, "%s\n", error_text(status.error()).c_str());
  std::exit(2);
}

std::uint64_t random_state = 1;
std::uint64_t next_random() {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return random_state;
}

/// Device memory for one case.
class Room {
 public:
  explicit Room(Backend& backend) : backend_(backend) {}

  /// Uniform in ±size.
  Tensor random(DType dtype, Shape shape, float size) {
    const Tensor x = make(dtype, shape);
    constexpr std::size_t kBlock = std::size_t{1} << 20;
    std::vector<std::byte> block(std::min<std::size_t>(kBlock * 4, x.bytes()));
    const auto bytes = static_cast<std::size_t>(dtype_bytes(dtype));
    for (std::size_t i = 0; i < block.size() / bytes; ++i) {
      const float value = (static_cast<float>(next_random() >> 40) * 0x1p-23f - 1.0f) * size;
      const std::uint16_t half = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
      if (dtype == DType::f32)
        std::memcpy(&block[i * bytes], &value, 4);
      else
        std::memcpy(&block[i * bytes], &half, 2);
    }
    for (std::size_t at = 0; at < x.bytes(); at += block.size())
      need(backend_.upload(x.data + at,
                           std::span(block).first(std::min(block.size(), static_cast<std::size_t>(x.bytes()) - at))));
    return x;
  }
  Tensor ints(Shape shape, const std::vector<std::int32_t>& values) {
    const Tensor x = make(DType::i32, shape);
    need(backend_.upload(x.data, std::as_bytes(std::span(values))));
    return x;
  }
  Tensor make(DType dtype, Shape shape) {
    Tensor x{.data = nullptr, .dtype = dtype, .shape = shape, .strides = {}, .root = 0};
    std::int64_t step = 1;
    for (int i = shape.rank - 1; i >= 0; --i) x.strides[static_cast<std::size_t>(i)] = step, step *= shape[i];
    buffers_.push_back(need(backend_.allocate_buffer(static_cast<Bytes>(step * dtype_bytes(dtype)))));
    x.data = buffers_.back()->data();
    return x;
  }
  Weight weight(WeightFormat format, std::int64_t rows, std::int64_t cols) {
    if (format == WeightFormat::bf16)
      return {.format = format, .rows = rows, .cols = cols, .data = random(DType::bf16, {rows, cols}, 0.05f).data};
    const auto scales = static_cast<std::int64_t>(weight_scale_count(format, rows, cols));
    return {.format = format,
            .rows = rows,
            .cols = cols,
            .data = codes({rows, cols}).data,
            .scales = random(DType::f32, {scales}, 1e-3f).data,
            .activations = format == WeightFormat::fp8_block128 ? Activations::kPerGroup : Activations::kPerToken};
  }
  /// e4m3, none of them NaN.
  Tensor codes(Shape shape) {
    const Tensor x = make(DType::f8e4m3, shape);
    std::vector<std::byte> block(std::min<std::size_t>(std::size_t{1} << 22, x.bytes()));
    for (std::byte& code : block)
      code = static_cast<std::byte>((next_random() >> 40 & 0x80) | (next_random() >> 40) % 0x78);
    for (std::size_t at = 0; at < x.bytes(); at += block.size())
      need(backend_.upload(x.data + at,
                           std::span(block).first(std::min(block.size(), static_cast<std::size_t>(x.bytes()) - at))));
    return x;
  }
  const Batch& batch(std::int64_t sequences, std::int64_t tokens, std::int64_t past) {
    std::vector<std::int32_t> table;
    for (std::int64_t s = 0; s < sequences; ++s) {
      sequences_.push_back({.slot = static_cast<std::int32_t>(s),
                            .first_token = static_cast<std::int32_t>(s * tokens),
                            .tokens = static_cast<std::int32_t>(tokens),
                            .past = static_cast<std::int32_t>(past)});
      table.insert(table.end(), {sequences_.back().slot, sequences_.back().first_token, sequences_.back().tokens,
                                 sequences_.back().past});
    }
    batch_.tokens = sequences * tokens;
    batch_.sequences = sequences_;
    batch_.sequence_table = ints({sequences, 4}, table);
    return batch_;
  }

 private:
  Backend& backend_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<Sequence> sequences_;
  Batch batch_;
};

/// The median of seven, each of several calls.
double seconds_of(Backend& backend, const std::function<void()>& call) {
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  const auto run = [&](int calls) {
    const double start = now();
    for (int i = 0; i < calls; ++i) call();
    need(backend.synchronize());
    return (now() - start) / calls;
  };
  run(2);
  const int calls = static_cast<int>(std::clamp(4e-3 / run(2), 1.0, 200.0));
  std::vector<double> all;
  for (int i = 0; i < 7; ++i) all.push_back(run(calls));
  std::sort(all.begin(), all.end());
  return all[3];
}

void report(const std::string& name, double seconds, double bytes, double flops, double peak = kFlopsPerSecond) {
  std::printf("%-52s %9.1f us  %6.2f TB/s %4.0f %%  %7.1f TFLOP/s %4.0f %%\n", name.c_str(), seconds * 1e6,
              bytes / seconds / 1e12, 100 * bytes / seconds / kBytesPerSecond, flops / seconds / 1e12,
              100 * flops / seconds / peak);
  std::fflush(stdout);
}

struct AttentionShape {
  std::int64_t sequences, tokens, past, heads, kv_heads, dk, dv;
};

/// With a cache of bf16; `fresh`: keys and values of the batch alone, f32, which may be rounded.
void time_attention(Backend& backend, const std::string& name, const AttentionShape& s, bool fresh = false) {
  Room room(backend);
  const std::int64_t rows = s.past + s.tokens;
  const Batch& batch = room.batch(s.sequences, s.tokens, s.past);
  const DType type = fresh ? DType::f32 : DType::bf16;
  const Tensor q = room.random(DType::f32, {batch.tokens, s.heads, s.dk}, 1),
               out = room.make(DType::f32, {batch.tokens, s.heads, s.dv});
  const Tensor k = room.random(type, {s.sequences * rows, s.kv_heads, s.dk}, 1),
               v = room.random(type, {s.sequences * rows, s.kv_heads, s.dv}, 1);
  const KvSegment segment{
      .kind = fresh ? KvSegment::Kind::kFresh : KvSegment::Kind::kCache, .k = k, .v = v, .rows_per_slot = rows};
  const auto call = [&] {
    backend.ops().attention(
        {.q = q, .segments = {&segment, 1}, .scale = 0.088, .out = out, .batch = &batch, .rounds_to = DType::bf16});
  };
  const double seen =
      static_cast<double>(s.sequences) * (static_cast<double>(s.tokens) * static_cast<double>(s.past) +
                                          0.5 * static_cast<double>(s.tokens) * static_cast<double>(s.tokens + 1));
  const double bytes = static_cast<double>(k.bytes() + v.bytes() + q.bytes() + out.bytes());
  report(name, seconds_of(backend, call), bytes, 2 * seen * static_cast<double>(s.heads * (s.dk + s.dv)));
}

void time_latents(Backend& backend, const std::string& name, std::int64_t sequences, std::int64_t tokens,
                  std::int64_t past, std::int64_t heads) {
  Room room(backend);
  const std::int64_t rows = past + tokens;
  const Batch& batch = room.batch(sequences, tokens, past);
  const Tensor q = room.random(DType::f32, {batch.tokens, heads, 576}, 1),
               out = room.make(DType::f32, {batch.tokens, heads, 512});
  const Tensor cache = room.random(DType::bf16, {sequences * rows, 576}, 1),
               keys = cache.columns(0, 512).split_last(512);
  const KvSegment segment{
      .kind = KvSegment::Kind::kCache, .k = keys, .k_shared = cache.columns(512, 64), .v = keys, .rows_per_slot = rows};
  const auto call = [&] {
    backend.ops().attention({.q = q, .segments = {&segment, 1}, .scale = 0.07, .out = out, .batch = &batch});
  };
  const double seen =
      static_cast<double>(sequences) * (static_cast<double>(tokens) * static_cast<double>(past) +
                                        0.5 * static_cast<double>(tokens) * static_cast<double>(tokens + 1));
  report(name, seconds_of(backend, call), static_cast<double>(cache.bytes() + q.bytes() + out.bytes()),
         2 * seen * static_cast<double>(heads * (576 + 512)));
}

void time_experts(Backend& backend, const std::string& name, std::int64_t tokens, std::int64_t hidden,
                  std::int64_t inner, std::int64_t experts, std::int64_t top_k,
                  WeightFormat format = WeightFormat::bf16) {
  Room room(backend);
  std::vector<Weight> gate, up, down;
  const Weight all[3] = {room.weight(format, experts * inner, hidden), room.weight(format, experts * inner, hidden),
                         room.weight(format, experts * hidden, inner)};
  for (std::int64_t e = 0; e < experts; ++e)
    for (int m = 0; m < 3; ++m) {
      Weight weight = all[m];
      weight.rows /= experts;
      const auto scales = static_cast<std::int64_t>(weight_scale_count(format, weight.rows, weight.cols));
      weight.data += e * static_cast<std::int64_t>(weight_row_bytes(format, weight.cols)) * weight.rows;
      if (scales > 0) weight.scales += e * scales * 4;
      (m == 0 ? gate : m == 1 ? up : down).push_back(weight);
    }
  std::vector<std::int32_t> indices;
  std::vector<bool> hit(static_cast<std::size_t>(experts), false);
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::vector<std::int32_t> own;
    while (std::ssize(own) < top_k) {
      const auto e = static_cast<std::int32_t>(next_random() >> 33) % static_cast<std::int32_t>(experts);
      if (std::find(own.begin(), own.end(), e) == own.end()) own.push_back(e), hit[static_cast<std::size_t>(e)] = true;
    }
    indices.insert(indices.end(), own.begin(), own.end());
  }
  const Tensor x = room.random(DType::f32, {tokens, hidden}, 1), out = room.make(DType::f32, {tokens, hidden}),
               weights = room.random(DType::f32, {tokens, top_k}, 1);
  const Tensor chosen = room.ints({tokens, top_k}, indices);
  const auto call = [&] {
    backend.ops().experts({.x = x,
                           .indices = chosen,
                           .weights = weights,
                           .gate = gate,
                           .up = up,
                           .down = down,
                           .first_expert = 0,
                           .total_experts = experts,
                           .limit = 0,
                           .out = out,
                           .accumulate = false});
  };
  const auto used = static_cast<double>(std::count(hit.begin(), hit.end(), true));
  const double bytes =
      used * static_cast<double>(weight_bytes(format, 2 * inner, hidden) + weight_bytes(format, hidden, inner));
  report(name, seconds_of(backend, call), bytes,
         6.0 * static_cast<double>(tokens * top_k) * static_cast<double>(hidden * inner),
         format == WeightFormat::bf16 ? kFlopsPerSecond : kFlopsOfFp8);
}

void time_linear(Backend& backend, const std::string& name, std::int64_t tokens, std::int64_t rows, std::int64_t cols,
                 WeightFormat format = WeightFormat::bf16) {
  Room room(backend);
  const Weight weight = room.weight(format, rows, cols);
  const Tensor x = room.random(DType::f32, {tokens, cols}, 1), out = room.make(DType::f32, {tokens, rows});
  const auto call = [&] { backend.ops().linear({.x = x, .weight = weight, .out = out}); };
  report(name, seconds_of(backend, call),
         static_cast<double>(weight_bytes(format, rows, cols)) + static_cast<double>(x.bytes() + out.bytes()),
         2.0 * static_cast<double>(tokens * rows) * static_cast<double>(cols),
         format == WeightFormat::bf16 ? kFlopsPerSecond : kFlopsOfFp8);
}

/// Products of one x, launched together, the weights of enough layers in turn that no cache holds them: rows.size()
/// products, the first two a gate and its up where `gated`.
void time_rows(Backend& backend, const std::string& name, WeightFormat format, std::int64_t tokens,
               const std::vector<std::int64_t>& rows, std::int64_t cols, bool gated) {
  Room room(backend);
  double bytes = 0;
  for (const std::int64_t n : rows) bytes += static_cast<double>(weight_bytes(format, n, cols));
  const auto layers = static_cast<std::size_t>(std::max(2.0, 2e8 / bytes));
  std::vector<std::vector<Weight>> weights(layers);
  for (auto& layer : weights)
    for (const std::int64_t n : rows) {
      Weight weight{.format = format, .rows = n, .cols = cols};
      weight.data =
          room.random(DType::bf16, {static_cast<std::int64_t>(weight_row_bytes(format, cols)) * n / 2}, 0.05f).data;
      if (const auto scales = weight_scale_bytes(format, n, cols); scales > 0)
        weight.scales =
            room.random(weight_layout(format).scale,
                        {static_cast<std::int64_t>(scales) / dtype_bytes(weight_layout(format).scale)}, 0.05f)
                .data;
      layer.push_back(weight);
    }
  std::vector<Tensor> out;
  for (const std::int64_t n : rows) out.push_back(room.make(DType::f32, {tokens, n}));
  const Tensor from = room.random(DType::f32, {tokens, cols}, 1), x = room.make(DType::f32, {tokens, cols}),
               norm = room.random(DType::f32, {cols}, 1);
  std::size_t turn = 0;
  const auto call = [&] {
    const auto& layer = weights[turn++ % layers];
    if (rows.size() > 1) backend.ops().rms_norm({.x = from, .weight = norm, .eps = 1e-6, .out = x});
    for (std::size_t i = 0; i < rows.size(); ++i)
      backend.ops().linear({.x = rows.size() > 1 ? x : from, .weight = layer[i], .out = out[i]});
    if (gated) backend.ops().swiglu({.gate = out[0], .up = out[1], .limit = 0, .out = out[0]});
  };
  report(name, seconds_of(backend, call), bytes, 0);
}

void time_7b(Backend& backend, const std::string& name, WeightFormat format, std::int64_t tokens) {
  time_rows(backend, name + ", output", format, tokens, {4096}, 4096, false);
  time_rows(backend, name + ", norm q k v", format, tokens, {4096, 4096, 4096}, 4096, false);
  time_rows(backend, name + ", norm gate up", format, tokens, {11008, 11008}, 4096, true);
  time_rows(backend, name + ", down", format, tokens, {4096}, 11008, false);
}

}  // namespace

int main(int argc, char** argv) {
  const auto backend = need(cuda::make_cuda_backend({}));
  Backend& b = *backend;
  const auto wanted = [&](const std::string& name) {
    return argc < 2 ||
           std::any_of(argv + 1, argv + argc, [&](const char* part) { return name.find(part) != std::string::npos; });
  };
  std::printf("%s\n", b.description().c_str());
  const std::vector<std::pair<std::string, std::function<void(const std::string&)>>> cases = {
      {"prefill attention 2048, 32 heads of 128",
       [&](const auto& n) {
         time_attention(b, n, {1, 2048, 0, 32, 32, 128, 128});
       }},
      {"prefill attention 8192, 32 heads of 128",
       [&](const auto& n) {
         time_attention(b, n, {1, 8192, 0, 32, 32, 128, 128});
       }},
      {"prefill attention 2048, 64 of 8 heads of 128",
       [&](const auto& n) {
         time_attention(b, n, {1, 2048, 0, 64, 8, 128, 128});
       }},
      {"prefill attention 2048, 16 heads of 192 / 128, fresh",
       [&](const auto& n) {
         time_attention(b, n, {1, 2048, 0, 16, 16, 192, 128}, true);
       }},
      {"prefill attention 512 after 7680, 32 heads of 128",
       [&](const auto& n) {
         time_attention(b, n, {1, 512, 7680, 32, 32, 128, 128});
       }},
      {"decode attention, batch 32, 512 keys, 32 heads",
       [&](const auto& n) {
         time_attention(b, n, {32, 1, 511, 32, 32, 128, 128});
       }},
      {"decode attention, batch 1, 512 keys, 32 heads",
       [&](const auto& n) {
         time_attention(b, n, {1, 1, 511, 32, 32, 128, 128});
       }},
      {"decode attention, batch 32, 2048 keys, 64 of 8 heads",
       [&](const auto& n) {
         time_attention(b, n, {32, 1, 2047, 64, 8, 128, 128});
       }},
      {"latent decode, batch 64, 8192 keys, 16 heads", [&](const auto& n) { time_latents(b, n, 64, 1, 8191, 16); }},
      {"latent decode, batch 64, 8192 keys, 128 heads", [&](const auto& n) { time_latents(b, n, 64, 1, 8191, 128); }},
      {"latent decode, batch 32, 544 keys, 16 heads", [&](const auto& n) { time_latents(b, n, 32, 1, 543, 16); }},
      {"latent decode, batch 1, 512 keys, 16 heads", [&](const auto& n) { time_latents(b, n, 1, 1, 511, 16); }},
      {"latent chunk 512 after 2048, 16 heads", [&](const auto& n) { time_latents(b, n, 1, 512, 2048, 16); }},
      {"experts V2-Lite, 1 token", [&](const auto& n) { time_experts(b, n, 1, 2048, 1408, 64, 6); }},
      {"experts V2-Lite, 32 tokens", [&](const auto& n) { time_experts(b, n, 32, 2048, 1408, 64, 6); }},
      {"experts V2-Lite, 128 tokens", [&](const auto& n) { time_experts(b, n, 128, 2048, 1408, 64, 6); }},
      {"experts V2-Lite, 2048 tokens", [&](const auto& n) { time_experts(b, n, 2048, 2048, 1408, 64, 6); }},
      {"experts V2-Lite, 8192 tokens", [&](const auto& n) { time_experts(b, n, 8192, 2048, 1408, 64, 6); }},
      {"linear 2048 x 4096 x 4096", [&](const auto& n) { time_linear(b, n, 2048, 4096, 4096); }},
      {"linear 2048 x 11008 x 4096", [&](const auto& n) { time_linear(b, n, 2048, 11008, 4096); }},
      {"linear 2048 x 4096 x 11008", [&](const auto& n) { time_linear(b, n, 2048, 4096, 11008); }},
      {"linear 32 x 11008 x 4096", [&](const auto& n) { time_linear(b, n, 32, 11008, 4096); }},
      {"rows of 7B, bf16, 1 token", [&](const auto& n) { time_7b(b, n, WeightFormat::bf16, 1); }},
      {"rows of 7B, fp8, 1 token", [&](const auto& n) { time_7b(b, n, WeightFormat::fp8_row, 1); }},
      {"rows of 7B, int8, 1 token", [&](const auto& n) { time_7b(b, n, WeightFormat::int8_row, 1); }},
      {"rows of 7B, int4, 1 token", [&](const auto& n) { time_7b(b, n, WeightFormat::int4_group128, 1); }},
      {"rows of 7B, int4, 8 tokens", [&](const auto& n) { time_7b(b, n, WeightFormat::int4_group128, 8); }},
      {"rows of 7B, bf16, 8 tokens", [&](const auto& n) { time_7b(b, n, WeightFormat::bf16, 8); }},
      {"rows of 7B, bf16, 16 tokens", [&](const auto& n) { time_7b(b, n, WeightFormat::bf16, 16); }},
      {"rows of 7B, bf16, 32 tokens", [&](const auto& n) { time_7b(b, n, WeightFormat::bf16, 32); }},
      {"rows of 7B, bf16, 64 tokens", [&](const auto& n) { time_7b(b, n, WeightFormat::bf16, 64); }},
      {"grouped fp8 V3, 4096 tokens x 8 of 256",
       [&](const auto& n) { time_experts(b, n, 4096, 7168, 2048, 256, 8, WeightFormat::fp8_block128); }},
      {"grouped fp8 V3, 4096 rows of 8 experts",
       [&](const auto& n) { time_experts(b, n, 4096, 7168, 2048, 8, 8, WeightFormat::fp8_block128); }},
      {"grouped fp8 V3, 128 tokens x 8 of 256",
       [&](const auto& n) { time_experts(b, n, 128, 7168, 2048, 256, 8, WeightFormat::fp8_block128); }},
      {"fp8 row 2048 x 4096 x 4096",
       [&](const auto& n) { time_linear(b, n, 2048, 4096, 4096, WeightFormat::fp8_row); }},
      {"fp8 row 2048 x 11008 x 4096",
       [&](const auto& n) { time_linear(b, n, 2048, 11008, 4096, WeightFormat::fp8_row); }},
      {"fp8 row 2048 x 4096 x 11008",
       [&](const auto& n) { time_linear(b, n, 2048, 4096, 11008, WeightFormat::fp8_row); }},
      {"int8 2048 x 4096 x 4096", [&](const auto& n) { time_linear(b, n, 2048, 4096, 4096, WeightFormat::int8_row); }},
      {"int8 2048 x 11008 x 4096",
       [&](const auto& n) { time_linear(b, n, 2048, 11008, 4096, WeightFormat::int8_row); }},
      {"int8 2048 x 4096 x 11008",
       [&](const auto& n) { time_linear(b, n, 2048, 4096, 11008, WeightFormat::int8_row); }},
      {"fp8 block 2048 x 11008 x 4096",
       [&](const auto& n) { time_linear(b, n, 2048, 11008, 4096, WeightFormat::fp8_block128); }},
      {"fp8 block 4096 x 7168 x 16384",
       [&](const auto& n) { time_linear(b, n, 4096, 7168, 16384, WeightFormat::fp8_block128); }},
  };
  for (const auto& [name, time] : cases)
    if (wanted(name)) time(name);
  return 0;
}
