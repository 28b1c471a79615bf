// How near the cpu backend comes to what the machine can do: weights read while decoding against the best read
// bandwidth that the probe measures at the start of the same run, and the rate of prefill products and of attention.
// usage: bench_cpu_kernels [--benchmark_filter=decode|prefill|attention] [other options of Google Benchmark]
// The shapes are those of a 1.3 B llama (hidden 2048, feed-forward 5504, 16 heads of 128), half of its layers.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/isa.h"
#include "hardware/cpu_info.h"
#include "hardware/probe.h"

namespace {

using namespace fathom;
using namespace fathom::tensor;

constexpr std::int64_t kHidden = 2048, kInner = 5504, kLayers = 12, kHeads = 16, kHeadDim = 128;

double floor_bytes_per_second = 0;  // 0: not measured

std::unique_ptr<Backend> backend_of(const std::string& isa, int threads) {
  auto backend = cpu::make_cpu_backend({.threads = threads, .isa = isa});
  if (!backend) {
    std::fprintf(stderr, "%s\n", error_text(backend.error()).c_str());
    std::exit(2);
  }
  return std::move(*backend);
}

/// All matrices of the layers, with small numbers of either sign.
class Layers {
 public:
  Layers(Backend& backend, WeightFormat format) {
    for (std::int64_t layer = 0; layer < kLayers; ++layer)
      for (const auto& [rows, cols] : {std::pair{kHidden, kHidden},
                                       {kHidden, kHidden},
                                       {kHidden, kHidden},
                                       {kHidden, kHidden},
                                       {kInner, kHidden},
                                       {kInner, kHidden},
                                       {kHidden, kInner}})
        weights_.push_back({.format = format, .rows = rows, .cols = cols});
    for (const Weight& weight : weights_) bytes_ += weight_bytes(format, weight.rows, weight.cols);
    auto buffer = backend.allocate_buffer(bytes_);
    if (!buffer) {
      std::fprintf(stderr, "%s\n", error_text(buffer.error()).c_str());
      std::exit(2);
    }
    buffer_ = std::move(*buffer);
    fill(format);
    std::byte* at = buffer_->data();
    for (Weight& weight : weights_) {
      weight.data = at;
      at += weight_bytes(format, weight.rows, weight.cols);
    }
  }
  const std::vector<Weight>& weights() const { return weights_; }
  double bytes() const { return static_cast<double>(bytes_); }

 private:
  void fill(WeightFormat format) {
    const auto element = static_cast<Bytes>(dtype_bytes(weight_dtype(format)));
    std::uint32_t state = 1;
    for (Bytes i = 0; i < bytes_ / element; ++i) {
      state = state * 1664525u + 1013904223u;
      const float value = (static_cast<float>(state >> 8) * 0x1p-24f - 0.5f) * 0.05f;
      if (format == WeightFormat::f32) {
        reinterpret_cast<float*>(buffer_->data())[i] = value;
      } else {
        reinterpret_cast<std::uint16_t*>(buffer_->data())[i] =
            format == WeightFormat::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
      }
    }
  }
  std::vector<Weight> weights_;
  std::unique_ptr<Buffer> buffer_;
  Bytes bytes_ = 0;
};

Value filled(Ops& ops, DType dtype, Shape shape) {
  Value value(ops, ops.allocate(dtype, shape));
  for (std::int64_t i = 0; i < shape.elements(); ++i) {
    const float x = static_cast<float>(i * 7919 % 1000 - 500) / 500.0f;
    if (dtype == DType::f32)
      value->as<float>()[i] = x;
    else
      value->as<std::uint16_t>()[i] = f32_to_bf16(x);
  }
  return value;
}

void run_linears(benchmark::State& state, const std::string& isa, int threads, WeightFormat format,
                 std::int64_t tokens) {
  const auto backend = backend_of(isa, threads);
  const Layers layers(*backend, format);
  Ops& ops = backend->ops();
  const Value x = filled(ops, DType::f32, {tokens, kHidden}), inner = filled(ops, DType::f32, {tokens, kInner});
  const Value out(ops, ops.allocate(DType::f32, {tokens, kHidden})),
      inner_out(ops, ops.allocate(DType::f32, {tokens, kInner}));
  double flops = 0;
  for (const Weight& weight : layers.weights()) flops += 2.0 * static_cast<double>(tokens * weight.rows * weight.cols);
  for (auto _ : state)
    for (const Weight& weight : layers.weights())
      ops.linear(
          {.x = weight.cols == kHidden ? x : inner, .weight = weight, .out = weight.rows == kHidden ? out : inner_out});
  const auto passes = static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(layers.bytes() * passes / 1e9, benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(flops * passes / 1e9, benchmark::Counter::kIsRate);
  if (floor_bytes_per_second > 0)
    state.counters["% of read bandwidth"] =
        benchmark::Counter(100 * layers.bytes() * passes / floor_bytes_per_second, benchmark::Counter::kIsRate);
}

void run_attention(benchmark::State& state, const std::string& isa, int threads, std::int64_t tokens,
                   std::int64_t past) {
  const auto backend = backend_of(isa, threads);
  Ops& ops = backend->ops();
  const std::int64_t rows = past + tokens;
  const Value q = filled(ops, DType::f32, {tokens, kHeads, kHeadDim}),
              k = filled(ops, DType::bf16, {rows, kHeads, kHeadDim});
  const Value v = filled(ops, DType::bf16, {rows, kHeads, kHeadDim}),
              out(ops, ops.allocate(DType::f32, {tokens, kHeads, kHeadDim}));
  const Sequence sequence{.slot = 0,
                          .first_token = 0,
                          .tokens = static_cast<std::int32_t>(tokens),
                          .past = static_cast<std::int32_t>(past)};
  Batch batch;
  batch.tokens = tokens;
  batch.sequences = {&sequence, 1};
  const KvSegment segment{.kind = KvSegment::Kind::kCache, .k = k, .v = v, .rows_per_slot = rows};
  for (auto _ : state) ops.attention({.q = q, .segments = {&segment, 1}, .scale = 0.0884, .out = out, .batch = &batch});
  const auto passes = static_cast<double>(state.iterations());
  const double seen = static_cast<double>(tokens * past) + static_cast<double>(tokens * (tokens + 1)) / 2;
  state.counters["GB/s"] =
      benchmark::Counter(static_cast<double>(k->bytes() + v->bytes()) * passes / 1e9, benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] =
      benchmark::Counter(4.0 * seen * kHeads * kHeadDim * passes / 1e9, benchmark::Counter::kIsRate);
}

void add(const std::string& name, const std::function<void(benchmark::State&)>& body) {
  benchmark::RegisterBenchmark(name.c_str(), body)->UseRealTime()->Unit(benchmark::kMillisecond);
}

void add_all(const std::string& isa, int threads) {
  const std::string tail = "/" + isa + "/threads:" + std::to_string(threads);
  for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::f16, WeightFormat::f32})
    add("decode/" + std::string(weight_format_name(format)) + "/tokens:1" + tail,
        [=](benchmark::State& s) { run_linears(s, isa, threads, format, 1); });
  for (const std::int64_t tokens : {4, 16})
    add("decode/bf16/tokens:" + std::to_string(tokens) + tail,
        [=](benchmark::State& s) { run_linears(s, isa, threads, WeightFormat::bf16, tokens); });
  for (const WeightFormat format : {WeightFormat::bf16, WeightFormat::f32})
    add("prefill/" + std::string(weight_format_name(format)) + "/tokens:256" + tail,
        [=](benchmark::State& s) { run_linears(s, isa, threads, format, 256); });
  add("attention/decode/past:1024" + tail, [=](benchmark::State& s) { run_attention(s, isa, threads, 1, 1024); });
  add("attention/prefill/tokens:256" + tail, [=](benchmark::State& s) { run_attention(s, isa, threads, 256, 0); });
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  hardware::ProbeOptions options;
  options.disks = options.measure_disks = options.gpus = false;
  const hardware::Machine machine = hardware::probe(options);
  floor_bytes_per_second = machine.read_bandwidth().value_or(0);
  std::printf("%s: best read bandwidth %.2f GB/s\n", machine.cpu.model.c_str(), floor_bytes_per_second / 1e9);
  for (const cpu::Implementation& each : cpu::implementations())
    if (cpu::missing_for(each, hardware::executable_isa()).empty())
      add_all(std::string(each.name), cpu::default_threads());
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
