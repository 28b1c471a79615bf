#include "measure/calibrate_rig.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/backends.h"
#include "base/clock.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary

constexpr Bytes kAlignment = 256;
constexpr int kMostCalls = 256;
constexpr std::uint64_t kSeed = 0x9E3779B97F4A7C15ULL;

Bytes round_up(Bytes bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// Random numbers in a device's memory, or in the host's, where a stretch of them comes again and again. Whole
/// stretches of kCols numbers.
Status fill_random(Backend& backend, std::byte* out, DType dtype, Bytes bytes, float mean, float spread) {
  constexpr std::int64_t kCols = 4096;
  constexpr Bytes kStretch = 4 * kMiB;
  const auto elements = static_cast<std::int64_t>(bytes / static_cast<Bytes>(dtype_bytes(dtype)));
  if (elements == 0) return {};
  const RandomFill fill{.out = out,
                        .dtype = dtype,
                        .rows = elements / kCols,
                        .cols = kCols,
                        .key = kSeed,
                        .first = 0,
                        .pitch = kCols,
                        .mean = mean,
                        .factor = spread / 131070.0f,
                        .codes = {}};
  if (elements % kCols == 0 && backend.fill_random(fill)) return {};
  std::vector<std::byte> host(static_cast<std::size_t>(std::min(bytes, kStretch)));
  std::uint32_t state = 1;
  for (std::size_t i = 0; i < host.size() / static_cast<std::size_t>(dtype_bytes(dtype)); ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = mean + (static_cast<float>(state >> 8) * 0x1p-23f - 1.0f) * spread;
    const std::size_t at = i * static_cast<std::size_t>(dtype_bytes(dtype));
    if (dtype == DType::f32) {
      std::memcpy(host.data() + at, &value, 4);
    } else {
      const std::uint16_t half = f32_to_bf16(value);
      std::memcpy(host.data() + at, &half, 2);
    }
  }
  for (Bytes at = 0; at < bytes; at += host.size())
    FATHOM_TRY_VOID(backend.upload(out + at, std::span<const std::byte>(host).first(
                                                 static_cast<std::size_t>(std::min<Bytes>(host.size(), bytes - at)))));
  return {};
}

}  // namespace

Grid full_grid(bool accelerator) {
  Grid g;
  g.keys = {128, 512, 2048, 8192};
  g.groups = {1, 2, 4, 8};
  g.row_queries = {1024, 4096, 12288}, g.row_keys = {256, 1024, 4096};
  g.latent_keys = {128, 512, 2048, 8192};
  if (accelerator) {
    g.tokens = {1, 2, 4, 8, 16, 32, 64, 128, 512, 2048};
    g.widths = {512, 1536, 4096, 10240, 24576};
    g.formats = {"bf16", "fp8_row", "int8_row", "int4_group128", "fp8_block128", "f32"};
    g.few_tokens = {1, 8, 32, 512, 2048}, g.few_widths = {1536, 4096, 10240, 24576};
    g.streams = {1, 2, 8, 32, 128, 512};
    g.one_heads = {2, 8, 32}, g.one_groups = {1, 4, 8};
    g.chunk_tokens = {128, 512, 2048}, g.reaches = {1, 2, 8}, g.chunk_heads = {8, 32}, g.chunk_groups = {1, 8};
    g.sequences = {1, 4, 16, 64}, g.latent_heads = {16, 128};
    g.latent_tokens = {128, 512, 1024}, g.latent_reaches = {2, 6}, g.latent_chunk_heads = {8, 32};
    g.expanded_tokens = {128, 512, 2048, 4096};
    g.row_tokens = {1, 4, 16, 64, 128, 512, 2048};
    g.expert_tokens = {1, 2, 4, 8, 16, 32, 64, 128, 512, 2048}, g.expert_hidden = {1024, 2048, 7168},
    g.expert_inner = {512, 1408, 2048}, g.expert_choices = {2, 8};
    g.route_tokens = {1, 8, 64, 512, 2048}, g.route_experts = {64, 256};
    g.bytes = {1 << 14, 1 << 17, 1 << 20, 1 << 23, 1 << 26, 1 << 29};
    g.reduce_bytes = {1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28};
    g.step_bytes = {4, 1 << 17, 1 << 19, 1 << 21, 1 << 23, 1 << 25};
    g.weights = 3 * kGiB, g.activations = 4 * kGiB;
    g.route_beside = true;
    return g;
  }
  g.tokens = {1, 4, 16, 64, 256};
  g.widths = {1024, 4096};
  g.formats = {"bf16", "f32"};
  g.few_tokens = {1, 16, 256}, g.few_widths = {1024, 4096};
  g.streams = {2, 8, 32}, g.keys = {128, 512, 2048}, g.groups = {1, 4};
  g.chunk_tokens = {64, 256, 512}, g.reaches = {1, 4}, g.chunk_heads = {8, 24}, g.chunk_groups = {1, 4};
  g.sequences = {1, 8}, g.latent_keys = {128, 512, 2048}, g.latent_heads = {16, 64};
  g.latent_tokens = {64, 256}, g.latent_reaches = {2, 4}, g.latent_chunk_heads = {8, 16};
  g.expanded_tokens = {64, 256, 512};
  g.row_tokens = {1, 8, 64, 256, 512}, g.row_queries = {1024, 4096}, g.row_keys = {256, 1024, 4096};
  g.expert_tokens = {1, 4, 16, 64, 256, 512}, g.expert_hidden = {1024, 2048}, g.expert_inner = {512, 1408},
  g.expert_choices = {2, 6};
  g.route_tokens = {1, 16, 256}, g.route_experts = {64, 256};
  g.bytes = {1 << 14, 1 << 17, 1 << 20, 1 << 23, 1 << 26};
  g.reduce_bytes = {1 << 12, 1 << 16, 1 << 20, 1 << 24};
  g.step_bytes = {4, 1 << 19, 1 << 23};
  g.experts = 32;
  g.eager_tokens = 2;
  g.weights = kGiB, g.activations = kGiB;
  g.seconds = 5e-3, g.cold = 64e6;
  return g;
}

Grid quick_grid() {
  Grid g = full_grid(false);
  g.tokens = {1, 16}, g.widths = {64, 256}, g.formats = {"bf16"};
  g.streams = {2, 8}, g.keys = {16, 64}, g.groups = {1, 4}, g.one_heads = {1, 2}, g.one_groups = {1, 2};
  g.chunk_tokens = {16, 32}, g.reaches = {1, 2}, g.chunk_heads = {4, 8}, g.chunk_groups = {1, 4};
  g.sequences = {1, 4}, g.latent_keys = {16, 64}, g.latent_heads = {4, 8}, g.latent_tokens = {8, 16},
  g.latent_reaches = {2, 4}, g.latent_chunk_heads = {4, 8}, g.expanded_tokens = {8, 16};
  g.row_tokens = {1, 16}, g.row_queries = {512, 1024}, g.row_keys = {256, 512};
  g.expert_tokens = {1, 8}, g.expert_hidden = {64, 128}, g.expert_inner = {64, 128}, g.expert_choices = {2, 4};
  g.route_tokens = {1, 8}, g.route_experts = {8, 16};
  g.bytes = {1 << 10, 1 << 16}, g.reduce_bytes = {1 << 10, 1 << 16}, g.step_bytes = {4, 1 << 12};
  g.experts = 8;
  g.weights = 8 * kMiB, g.activations = 64 * kMiB;
  g.seconds = 1e-5, g.cold = 0, g.runs = 1;
  return g;
}

Result<std::unique_ptr<Rig>> Rig::make(const std::string& device, const BackendOptions& options, const Grid& grid) {
  FATHOM_TRY(auto backend, backends::make_backend(device, options));
  return make(std::move(backend), grid);
}

Result<std::unique_ptr<Rig>> Rig::make(std::unique_ptr<Backend> backend, const Grid& grid) {
  std::unique_ptr<Rig> rig(new Rig(grid));
  rig->backend_ = std::move(backend);
  FATHOM_TRY_VOID(rig->fill());
  return rig;
}

Status Rig::fill() {
  FATHOM_TRY(weights_, backend_->allocate_buffer(grid_.weights));
  FATHOM_TRY(activations_, backend_->allocate_buffer(grid_.activations));
  constexpr Bytes kScales = 64 * kMiB;
  FATHOM_TRY(scales_, backend_->allocate_buffer(std::min<Bytes>(kScales, grid_.weights)));
  // As codes these are any: powers do not matter, bits that change do.
  FATHOM_TRY_VOID(fill_random(*backend_, weights_->data(), DType::bf16, weights_->bytes(), 0, 0.05f));
  FATHOM_TRY_VOID(fill_random(*backend_, activations_->data(), DType::bf16, activations_->bytes(), 0,
                              1));  // pairs of them are f32 of that size
  FATHOM_TRY_VOID(fill_random(*backend_, scales_->data(), DType::f32, scales_->bytes(), 0.01f, 0.001f));
  FATHOM_TRY_VOID(backend_->synchronize());
  Tensor one = make_tensor(activations_->data(), DType::f32, {1, 64}),
         other = make_tensor(activations_->data() + kAlignment, DType::f32, {1, 64});
  for (const bool recorded : {false, true}) {
    std::vector<double> seconds;
    const std::uint64_t key = recorded ? next_key_++ : 0;
    for (int i = 0; i < 12; ++i) {
      FATHOM_TRY(const double took, run(key, 1, [&](int) { ops().copy({.x = one, .out = other}); }));
      if (i > 2) seconds.push_back(took);
    }
    empty_[recorded ? 1 : 0] = *std::min_element(seconds.begin(), seconds.end());
  }
  return {};
}

Weight Rig::weight(WeightFormat format, std::int64_t rows, std::int64_t cols) {
  const Bytes bytes = round_up(weight_row_bytes(format, cols) * static_cast<Bytes>(rows));
  if (next_weight_ + bytes > weights_->bytes()) next_weight_ = 0;
  Weight weight{
      .format = format, .rows = rows, .cols = cols, .data = weights_->data() + next_weight_, .scales = nullptr};
  next_weight_ += bytes;
  const WeightLayout layout = weight_layout(format);
  if (layout.code != WeightCode::kPlain) {
    weight.scales = scales_->data();
    if (format == WeightFormat::fp8_row || format == WeightFormat::int8_row)
      weight.activations = Activations::kPerToken;
  }
  return weight;
}

Status Rig::forget() {
  // What ops left there may be anything, and denormals and NaN are slow on some processors.
  constexpr Bytes kWhole = 8192;
  const Bytes dirty = (used_ + kWhole - 1) / kWhole * kWhole;
  used_ = 0;
  return fill_random(*backend_, activations_->data(), DType::bf16, dirty, 0, 1);
}

Tensor Rig::tensor(DType dtype, Shape shape) {
  const Bytes bytes = round_up(static_cast<Bytes>(shape.elements()) * static_cast<Bytes>(dtype_bytes(dtype)));
  FATHOM_CHECK(used_ + bytes <= grid_.activations / 2,
               "a point of the grid needs more activations than there is room for");
  const Tensor out = make_tensor(activations_->data() + used_, dtype, shape);
  used_ += bytes;
  return out;
}

Tensor Rig::cache(Shape shape) {
  const Bytes bytes = round_up(static_cast<Bytes>(shape.elements()) * 2), room = grid_.activations / 2;
  FATHOM_CHECK(bytes <= room, "a cache of the grid is larger than there is room for");
  if (next_cache_ + bytes > room) next_cache_ = 0;
  const Tensor out = make_tensor(activations_->data() + room + next_cache_, DType::bf16, shape);
  next_cache_ += bytes;
  return out;
}

Tensor Rig::table(const std::vector<std::int32_t>& values, Shape shape) {
  const Tensor out = tensor(DType::i32, shape);
  static_cast<void>(backend_->upload(out.data, std::as_bytes(std::span(values))));
  return out;
}

std::unique_ptr<Rig::Tokens> Rig::tokens(std::int64_t sequences, std::int64_t tokens, std::int64_t past) {
  auto made = std::make_unique<Tokens>();
  std::vector<std::int32_t> table, positions, ids;
  for (std::int64_t s = 0; s < sequences; ++s) {
    made->sequences.push_back({.slot = static_cast<std::int32_t>(s),
                               .first_token = static_cast<std::int32_t>(s * tokens),
                               .tokens = static_cast<std::int32_t>(tokens),
                               .past = static_cast<std::int32_t>(past)});
    const Sequence& one = made->sequences.back();
    for (const std::int32_t number : {one.slot, one.first_token, one.tokens, one.past}) table.push_back(number);
    for (std::int64_t t = 0; t < tokens; ++t)
      positions.push_back(static_cast<std::int32_t>(past + t)), ids.push_back(static_cast<std::int32_t>(t));
  }
  made->batch.tokens = sequences * tokens;
  made->batch.sequences = made->sequences;
  made->batch.sequence_table = this->table(table, {sequences, 4});
  made->batch.positions = this->table(positions, {sequences * tokens});
  made->batch.ids = this->table(ids, {sequences * tokens});
  return made;
}

Result<double> Rig::run(std::uint64_t key, int calls, const std::function<void(int)>& body) {
  const double started = now_seconds();
  FATHOM_TRY(const bool called, backend_->run_pass(key, [&] {
    for (int i = 0; i < calls; ++i) body(i);
  }));
  static_cast<void>(called);
  FATHOM_TRY_VOID(backend_->synchronize());
  return now_seconds() - started;
}

Result<double> Rig::time(bool recorded, double cold, const std::function<void(int)>& body) {
  FATHOM_TRY(double once, run(0, 1, body));  // libraries prepare themselves
  if (once < 0.05) {
    FATHOM_TRY(once, run(0, 1, body));
  }
  const double empty = empty_[recorded ? 1 : 0], own = std::max(once - empty_[0], 2e-7);
  const double wanted = std::max(grid_.seconds / own, cold > 0 ? grid_.cold / cold : 0);
  const int calls = static_cast<int>(std::clamp(std::ceil(wanted), 1.0, static_cast<double>(kMostCalls)));
  const std::uint64_t key = recorded ? next_key_++ : 0;
  std::vector<double> seconds;
  // A record is made by the second run; a long point is timed once more and no more.
  const int before = recorded ? 2 : 1, runs = own * calls > 20 * grid_.seconds ? 1 : grid_.runs;
  for (int i = 0; i < before + runs; ++i) {
    FATHOM_TRY(const double took, run(key, calls, body));
    if (i >= before || (runs == 1 && !recorded)) seconds.push_back(took);
  }
  std::sort(seconds.begin(), seconds.end());
  return std::max((seconds[seconds.size() / 2] - empty) / calls, 1e-8);
}

Result<double> Rig::time_calls(int calls, const std::function<Status()>& body) {
  std::vector<double> seconds;
  for (int i = 0; i < calls + 2; ++i) {
    const double started = now_seconds();
    FATHOM_TRY_VOID(body());
    if (i >= 2) seconds.push_back(now_seconds() - started);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace fathom::measure
