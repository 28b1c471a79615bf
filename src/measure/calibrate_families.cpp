#include "measure/calibrate_families.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary
using plan::Family;
using plan::MeasuredTable;

constexpr std::int64_t kLeastMade = 8;  // tokens up to which nothing is gained by another form of x
constexpr std::int64_t kHeadDim = 128, kLatent = 512, kRope = 64;
using Place = std::vector<double>;

std::int64_t whole(double value) { return std::llround(value); }
double num(std::int64_t value) { return static_cast<double>(value); }

class Families {
 public:
  Families(Rig& rig, const Grid& grid, const std::function<void()>& point)
      : rig_(rig), ops_(rig.ops()), grid_(grid), point_(point) {}

  Result<std::vector<MeasuredTable>> run() {
    for (std::size_t f = 0; f < grid_.formats.size(); ++f) FATHOM_TRY_VOID(products(grid_.formats[f], f == 0));
    FATHOM_TRY_VOID(grouped());
    FATHOM_TRY_VOID(attention());
    FATHOM_TRY_VOID(latents());
    FATHOM_TRY_VOID(rows());
    FATHOM_TRY_VOID(experts());
    FATHOM_TRY_VOID(route());
    FATHOM_TRY_VOID(elementwise());
    FATHOM_TRY_VOID(machine());
    return std::move(tables_);
  }

 private:
  bool recorded(double tokens) const { return tokens < grid_.eager_tokens; }

  Status table(Family family, const std::string& format, std::vector<std::vector<double>> axes,
               const std::function<Result<Point>(const Place&)>& time) {
    MeasuredTable made = make_table(family, format, std::move(axes));
    const auto one = [&](const Place& place) -> Result<Point> {
      FATHOM_TRY_VOID(rig_.forget());
      return time(place);
    };
    FATHOM_TRY_VOID(fill_table(made, one, point_));
    tables_.push_back(std::move(made));
    return {};
  }

  // ---------------------------------------------------------------- products

  Status products(const std::string& name, bool full) {
    const auto format = parse_weight_format(name);
    FATHOM_CHECK(format.has_value());
    const std::vector<double>&tokens = full ? grid_.tokens : grid_.few_tokens,
          &widths = full ? grid_.widths : grid_.few_widths;
    for (const Family family : {Family::kPlain, Family::kSum, Family::kGates, Family::kNormed, Family::kNormedGates})
      FATHOM_TRY_VOID(table(family, name, {tokens, widths, widths}, [&](const Place& at) {
        return product(family, *format, whole(at[0]), whole(at[1]), whole(at[2]));
      }));
    return {};
  }

  Result<Point> product(Family family, WeightFormat format, std::int64_t tokens, std::int64_t n, std::int64_t k) {
    const bool gates = family == Family::kGates || family == Family::kNormedGates,
               normed = family == Family::kNormed || family == Family::kNormedGates;
    const int parts = gates || normed ? 2 : 1;
    const std::int64_t own = n / parts;
    const Tensor from = rig_.tensor(DType::f32, {tokens, k}), x = rig_.tensor(DType::f32, {tokens, k}),
                 norm = make_tensor(rig_.weight(WeightFormat::f32, 1, k).tensor().data, DType::f32, {k});
    std::array<Tensor, 2> out{rig_.tensor(DType::f32, {tokens, own}), rig_.tensor(DType::f32, {tokens, own})};
    const Tensor residual = rig_.tensor(DType::f32, {tokens, own});
    // In a model the x of a product that a sum follows comes from a gate or from attention, which may leave it in the
    // form that the product wants: so does a gate here, whose own time is taken off.
    const bool made = family == Family::kSum && tokens > kLeastMade;
    const Tensor up = made ? rig_.tensor(DType::f32, {tokens, k}) : Tensor();
    const auto make = [&] { ops_.swiglu({.gate = from, .up = up, .limit = 0, .out = x}); };
    const double cold = num(static_cast<std::int64_t>(weight_bytes(format, n, k)));
    double making = 0;
    if (made) {
      FATHOM_TRY(making, rig_.time(recorded(num(tokens)), 0, [&](int) { make(); }));
    }
    Point point{
        .bytes = num(static_cast<std::int64_t>(weight_bytes(format, own, k))) * parts + 4.0 * num(tokens) * num(k + n),
        .flops = 2.0 * num(tokens) * num(n) * num(k)};
    FATHOM_TRY(point.seconds, rig_.time(recorded(num(tokens)), cold, [&](int) {
      if (made) make();
      if (normed) ops_.rms_norm({.x = from, .weight = norm, .eps = 1e-6, .out = x});
      for (int i = 0; i < parts; ++i)
        ops_.linear(
            {.x = x, .weight = rig_.weight(format, own, k), .bias = {}, .out = out[static_cast<std::size_t>(i)]});
      if (gates) ops_.swiglu({.gate = out[0], .up = out[1], .limit = 0, .out = out[0]});
      if (family == Family::kSum) ops_.add({.a = out[0], .b = residual, .out = out[0]});
    }));
    point.seconds = std::max(point.seconds - making, 0.3 * point.seconds);
    return point;
  }

  Status grouped() {
    std::vector<double> tokens = grid_.few_tokens;
    for (const Family family : {Family::kGroupedIn, Family::kGroupedOut}) {
      FATHOM_TRY_VOID(
          table(family, grid_.formats.front(), {tokens, grid_.latent_heads}, [&](const Place& at) -> Result<Point> {
            const std::int64_t t = whole(at[0]), heads = whole(at[1]);
            const bool in = family == Family::kGroupedIn;
            const WeightFormat format = *parse_weight_format(grid_.formats.front());
            const Tensor narrow = rig_.tensor(DType::f32, {t, heads, kHeadDim}),
                         wide = rig_.tensor(DType::f32, {t, heads, kLatent});
            const double weights = num(static_cast<std::int64_t>(weight_bytes(format, heads * kHeadDim, kLatent)));
            Point point{.bytes = weights + 4.0 * num(t) * num(heads) * num(kHeadDim + kLatent),
                        .flops = 2.0 * num(t) * num(heads) * num(kHeadDim) * num(kLatent)};
            FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), 2 * weights, [&](int) {
              // Both halves lie in one weight: rows of the keys, then those of the values, a head.
              ops_.grouped_linear({.x = in ? narrow : wide,
                                   .weight = rig_.weight(format, heads * 2 * kHeadDim, kLatent),
                                   .group_rows = 2 * kHeadDim,
                                   .row_offset = in ? 0 : kHeadDim,
                                   .rows = kHeadDim,
                                   .transposed = in,
                                   .out = in ? wide : narrow});
            }));
            return point;
          }));
    }
    return {};
  }

  // ---------------------------------------------------------------- attention

  Status attention() {
    FATHOM_TRY_VOID(table(Family::kDecode, "", {grid_.streams, grid_.keys, grid_.groups}, [&](const Place& at) {
      const std::int64_t kv_heads = std::min<std::int64_t>(whole(at[0]), 8);
      return attend({.sequences = whole(at[0]) / kv_heads,
                     .tokens = 1,
                     .past = whole(at[1]) - 1,
                     .heads = kv_heads * whole(at[2]),
                     .kv_heads = kv_heads});
    }));
    FATHOM_TRY_VOID(table(Family::kChunk, "",
                          {grid_.chunk_tokens, grid_.reaches, grid_.chunk_heads, grid_.chunk_groups},
                          [&](const Place& at) {
                            const std::int64_t tokens = whole(at[0]), heads = whole(at[2]);
                            return attend({.sequences = 1,
                                           .tokens = tokens,
                                           .past = tokens * (whole(at[1]) - 1),
                                           .heads = heads,
                                           .kv_heads = heads / std::min(whole(at[3]), heads)});
                          }));
    return table(Family::kExpanded, "", {grid_.expanded_tokens, grid_.latent_heads},
                 [&](const Place& at) { return expanded(whole(at[0]), whole(at[1])); });
  }

  struct Shape4 {
    std::int64_t sequences = 1, tokens = 1, past = 0, heads = 1, kv_heads = 1;
    bool latent = false;
  };

  Result<Point> attend(const Shape4& s) {
    const std::int64_t rows = s.sequences * s.tokens, keys = s.past + s.tokens, d = s.latent ? kLatent : kHeadDim,
                       extra = s.latent ? kRope : 0;
    const auto tokens = rig_.tokens(s.sequences, s.tokens, s.past);
    const Tensor q = rig_.tensor(DType::f32, {rows, s.heads, d + extra}),
                 out = rig_.tensor(DType::f32, {rows, s.heads, d});
    const double row = 2.0 * num(s.latent ? d + extra : s.kv_heads * 2 * d),
                 cached = num(s.sequences) * num(keys) * row;
    const double visible = num(s.past) + 0.5 * (num(s.tokens) + 1);
    Point point{.bytes = cached + 4.0 * num(rows) * num(s.heads) * num(2 * d + extra),
                .flops = 2.0 * num(rows) * num(s.heads) * num(2 * d + extra) * visible};
    FATHOM_TRY(point.seconds, rig_.time(s.tokens == 1 && recorded(num(rows)), cached, [&](int) {
      KvSegment segment{
          .kind = KvSegment::Kind::kCache, .k = {}, .k_shared = {}, .v = {}, .rows_per_slot = keys, .selected = {}};
      if (s.latent) {
        const Tensor all = rig_.cache({s.sequences * keys, d + extra});
        segment.k = segment.v = all.columns(0, d).split_last(d);
        segment.k_shared = all.columns(d, extra);
      } else {
        segment.k = rig_.cache({s.sequences * keys, s.kv_heads, d});
        segment.v = rig_.cache({s.sequences * keys, s.kv_heads, d});
      }
      ops_.attention({.q = q,
                      .segments = {&segment, 1},
                      .scale = 0.0884,
                      .sink = {},
                      .out = out,
                      .lse = {},
                      .batch = &tokens->batch});
    }));
    return point;
  }

  /// Latent attention over its own tokens: keys and values of every head, f32, as products made them.
  Result<Point> expanded(std::int64_t t, std::int64_t heads) {
    const auto tokens = rig_.tokens(1, t, 0);
    const Tensor q = rig_.tensor(DType::f32, {t, heads, kHeadDim + kRope}),
                 kv = rig_.tensor(DType::f32, {t, heads, 2 * kHeadDim}), rope = rig_.tensor(DType::f32, {t, kRope}),
                 out = rig_.tensor(DType::f32, {t, heads, kHeadDim});
    const KvSegment segment{.kind = KvSegment::Kind::kFresh,
                            .k = kv.columns(0, kHeadDim),
                            .k_shared = rope,
                            .v = kv.columns(kHeadDim, kHeadDim),
                            .selected = {}};
    const WeightFormat format = *parse_weight_format(grid_.formats.front());
    const DType rounds = format == WeightFormat::bf16 ? DType::bf16 : DType::f32;
    Point point{.bytes = 4.0 * num(t) * (num(heads) * num(4 * kHeadDim + kRope) + num(kRope)),
                .flops = num(t) * num(t + 1) * num(heads) * num(2 * kHeadDim + kRope)};
    FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), 0, [&](int) {
      ops_.attention({.q = q,
                      .segments = {&segment, 1},
                      .scale = 0.0722,
                      .sink = {},
                      .out = out,
                      .lse = {},
                      .batch = &tokens->batch,
                      .rounds_to = rounds});
    }));
    return point;
  }

  Status latents() {
    FATHOM_TRY_VOID(table(Family::kLatentDecode, "", {grid_.sequences, grid_.latent_keys, grid_.latent_heads},
                          [&](const Place& at) {
                            return attend({.sequences = whole(at[0]),
                                           .tokens = 1,
                                           .past = whole(at[1]) - 1,
                                           .heads = whole(at[2]),
                                           .latent = true});
                          }));
    return table(Family::kLatentChunk, "", {grid_.latent_tokens, grid_.latent_reaches, grid_.latent_chunk_heads},
                 [&](const Place& at) {
                   return attend({.sequences = 1,
                                  .tokens = whole(at[0]),
                                  .past = whole(at[0]) * (whole(at[1]) - 1),
                                  .heads = whole(at[2]),
                                  .latent = true});
                 });
  }

  // ---------------------------------------------------------------- rotations and caches

  Status rows() {
    FATHOM_TRY_VOID(table(Family::kRows, "", {grid_.row_tokens, grid_.row_queries, grid_.row_keys},
                          [&](const Place& at) { return rotate(whole(at[0]), whole(at[1]), whole(at[2])); }));
    for (const Family family : {Family::kLatentRows, Family::kLatentFresh})
      FATHOM_TRY_VOID(table(family, "", {grid_.row_tokens, grid_.latent_heads}, [&](const Place& at) {
        return rotate_latent(whole(at[0]), whole(at[1]), family == Family::kLatentRows);
      }));
    return {};
  }

  /// One sequence of many tokens, or as many sequences of one.
  std::unique_ptr<Rig::Tokens> some_tokens(std::int64_t t) {
    return recorded(num(t)) ? rig_.tokens(t, 1, 0) : rig_.tokens(1, t, 0);
  }

  Result<Point> rotate(std::int64_t t, std::int64_t queries, std::int64_t keys) {
    const auto tokens = some_tokens(t);
    const std::int64_t slot_rows = t / std::ssize(tokens->sequences);
    const Tensor q = rig_.tensor(DType::f32, {t, queries}), k = rig_.tensor(DType::f32, {t, keys}),
                 v = rig_.tensor(DType::f32, {t, keys});
    const Tensor cos = rig_.tensor(DType::f32, {t, kHeadDim / 2}), sin = rig_.tensor(DType::f32, {t, kHeadDim / 2});
    const Tensor k_cache = rig_.cache({t, keys}), v_cache = rig_.cache({t, keys});
    Point point{.bytes = num(t) * (8.0 * num(queries) + 8.0 * num(keys) + 2 * 4.0 * num(kHeadDim) +
                                   2 * (4.0 + 2.0) * num(keys))};
    FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), 0, [&](int) {
      ops_.rope({.x = q.split_last(kHeadDim), .cos = cos, .sin = sin});
      ops_.rope({.x = k.split_last(kHeadDim), .cos = cos, .sin = sin});
      ops_.cache_write({.src = k, .cache = k_cache, .rows_per_slot = slot_rows, .batch = &tokens->batch});
      ops_.cache_write({.src = v, .cache = v_cache, .rows_per_slot = slot_rows, .batch = &tokens->batch});
    }));
    return point;
  }

  Result<Point> rotate_latent(std::int64_t t, std::int64_t heads, bool absorbed) {
    const auto tokens = some_tokens(t);
    const std::int64_t slot_rows = t / std::ssize(tokens->sequences);
    const Tensor q = rig_.tensor(DType::f32, {t, heads, kHeadDim + kRope}),
                 kv = rig_.tensor(DType::f32, {t, kLatent + kRope}), latent = rig_.tensor(DType::f32, {t, kLatent});
    const Tensor cos = rig_.tensor(DType::f32, {t, kRope / 2}), sin = rig_.tensor(DType::f32, {t, kRope / 2}),
                 absorbed_q = rig_.tensor(DType::f32, {t, heads, kLatent + kRope});
    const Tensor norm = rig_.tensor(DType::f32, {kLatent}), cache = rig_.cache({t, kLatent + kRope});
    const double rope_bytes = 8.0 * num(t) * num(heads + 1) * num(kRope) + 2 * 4.0 * num(t) * num(kRope),
                 writes = num(t) * (4.0 + 2.0) * num(kLatent + kRope);
    Point point{.bytes = rope_bytes + 8.0 * num(t) * num(kLatent) + writes +
                         (absorbed ? 8.0 * num(t) * num(heads) * num(kRope) : 0.0)};
    FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), 0, [&](int) {
      ops_.rope({.x = q, .cos = cos, .sin = sin, .first_dim = kHeadDim, .interleaved = true});
      ops_.rope({.x = kv.columns(kLatent, kRope).split_last(kRope), .cos = cos, .sin = sin, .interleaved = true});
      ops_.rms_norm({.x = kv.columns(0, kLatent), .weight = norm, .eps = 1e-6, .out = latent});
      ops_.cache_write(
          {.src = latent, .cache = cache.columns(0, kLatent), .rows_per_slot = slot_rows, .batch = &tokens->batch});
      ops_.cache_write({.src = kv.columns(kLatent, kRope),
                        .cache = cache.columns(kLatent, kRope),
                        .rows_per_slot = slot_rows,
                        .batch = &tokens->batch});
      if (absorbed) ops_.copy({.x = q.columns(kHeadDim, kRope), .out = absorbed_q.columns(kLatent, kRope)});
    }));
    return point;
  }

  // ---------------------------------------------------------------- experts

  Status experts() {
    return table(Family::kExperts, grid_.formats.front(),
                 {grid_.expert_tokens, grid_.expert_hidden, grid_.expert_inner, grid_.expert_choices},
                 [&](const Place& at) { return expert_layer(whole(at[0]), whole(at[1]), whole(at[2]), whole(at[3])); });
  }

  Result<Point> expert_layer(std::int64_t t, std::int64_t hidden, std::int64_t inner, std::int64_t k) {
    constexpr int kTables = 8;  // of choices, in turn
    const WeightFormat format = *parse_weight_format(grid_.formats.front());
    std::vector<Weight> gate, up, down;
    for (std::int64_t e = 0; e < grid_.experts; ++e) {
      gate.push_back(rig_.weight(format, inner, hidden));
      up.push_back(rig_.weight(format, inner, hidden));
      down.push_back(rig_.weight(format, hidden, inner));
    }
    std::uint32_t state = 7;
    std::vector<std::int32_t> choices;
    double hit = 0;
    for (int table = 0; table < kTables; ++table) {
      std::vector<bool> seen(static_cast<std::size_t>(grid_.experts));
      for (std::int64_t i = 0; i < t; ++i) {
        const std::size_t first = choices.size();
        while (std::ssize(choices) < static_cast<std::ptrdiff_t>(first) + k) {
          state = state * 1664525u + 1013904223u;
          const auto expert = static_cast<std::int32_t>((state >> 8) % static_cast<std::uint32_t>(grid_.experts));
          if (std::find(choices.begin() + static_cast<std::ptrdiff_t>(first), choices.end(), expert) != choices.end())
            continue;
          choices.push_back(expert);
          seen[static_cast<std::size_t>(expert)] = true;
        }
      }
      hit += num(std::count(seen.begin(), seen.end(), true)) / kTables;
    }
    const Tensor indices = rig_.table(choices, {kTables * t, k}), x = rig_.tensor(DType::f32, {t, hidden}),
                 weights = rig_.tensor(DType::f32, {t, k}), out = rig_.tensor(DType::f32, {t, hidden});
    const double expert =
        num(static_cast<std::int64_t>(2 * weight_bytes(format, inner, hidden) + weight_bytes(format, hidden, inner)));
    Point point{.bytes = hit * expert + 8.0 * num(t) * num(hidden),
                .flops = 6.0 * num(t) * num(k) * num(hidden) * num(inner)};
    FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), hit * expert, [&](int call) {
      ops_.experts({.x = x,
                    .indices = indices.rows(call % kTables * t, t),
                    .weights = weights,
                    .gate = gate,
                    .up = up,
                    .down = down,
                    .first_expert = 0,
                    .total_experts = grid_.experts,
                    .limit = 0,
                    .out = out,
                    .accumulate = true});
    }));
    return point;
  }

  Status route() {
    return table(Family::kRoute, "", {grid_.route_tokens, grid_.route_experts}, [&](const Place& at) -> Result<Point> {
      const std::int64_t t = whole(at[0]), experts = whole(at[1]), k = std::min<std::int64_t>(8, experts / 2);
      const Tensor logits = rig_.tensor(DType::f32, {t, experts}), indices = rig_.tensor(DType::i32, {t, k}),
                   weights = rig_.tensor(DType::f32, {t, k});
      Point point{.bytes = 4.0 * num(t) * num(experts)};
      FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), 0, [&](int) {
        ops_.route({.logits = logits,
                    .bias = {},
                    .table = {},
                    .ids = {},
                    .routing = {.scoring = Scoring::kSoftmax, .experts = experts, .top_k = k},
                    .indices = indices,
                    .weights = weights});
      }));
      return point;
    });
  }

  // ---------------------------------------------------------------- what has no shape

  Status elementwise() {
    return table(Family::kElementwise, "", {grid_.bytes}, [&](const Place& at) -> Result<Point> {
      const std::int64_t n = std::max<std::int64_t>(whole(at[0]) / 12, 64), wide = std::min<std::int64_t>(n, 4096),
                         rows = std::max<std::int64_t>(n / wide, 1);
      const Tensor a = rig_.tensor(DType::f32, {rows, wide}), b = rig_.tensor(DType::f32, {rows, wide}),
                   out = rig_.tensor(DType::f32, {rows, wide});
      Point point{.bytes = 12.0 * num(rows) * num(wide)};
      FATHOM_TRY(point.seconds,
                 rig_.time(recorded(num(rows)), 0, [&](int) { ops_.add({.a = a, .b = b, .out = out}); }));
      return point;
    });
  }

  /// Copies, transfers, launches, and what a pass costs around its ops.
  Status machine() {
    const double large = grid_.bytes.back();
    FATHOM_TRY_VOID(table(Family::kCopy, "", {{large}}, [&](const Place& at) -> Result<Point> {
      const std::int64_t rows = std::max<std::int64_t>(whole(at[0]) / 8 / 4096, 1);
      const Tensor a = rig_.tensor(DType::f32, {rows, 4096}), b = rig_.tensor(DType::f32, {rows, 4096});
      Point point{.bytes = 8.0 * num(rows) * 4096};
      FATHOM_TRY(point.seconds, rig_.time(true, 0, [&](int) { ops_.copy({.x = a, .out = b}); }));
      return point;
    }));
    Backend& backend = rig_.backend();
    const Bytes most = static_cast<Bytes>(std::max({grid_.step_bytes.back(), std::min(large, 1e8), 1.0}));
    FATHOM_TRY(const auto host, backend.allocate_buffer(most, Placement::kShared));
    FATHOM_TRY_VOID(table(Family::kHostCopy, "", {{std::min(large, 1e8)}}, [&](const Place& at) -> Result<Point> {
      const auto bytes = static_cast<Bytes>(at[0]);
      const Tensor to = rig_.tensor(DType::f32, {static_cast<std::int64_t>(bytes / 4)});
      Point point{.bytes = at[0]};
      FATHOM_TRY(point.seconds, rig_.time_calls(5, [&] {
        backend.copy_in(to.data, host->data(), bytes);
        return backend.synchronize();
      }));
      return point;
    }));
    FATHOM_TRY_VOID(table(Family::kLaunch, "", {{512}}, [&](const Place& at) -> Result<Point> {
      const Tensor a = rig_.tensor(DType::f32, {1, 64}), b = rig_.tensor(DType::f32, {1, 64});
      Point point{.bytes = at[0] * 512};
      FATHOM_TRY(point.seconds, rig_.time(false, 0, [&](int) {
        for (std::int64_t i = 0; i < whole(at[0]); ++i) ops_.gelu({.x = a, .out = b});
      }));
      return point;
    }));
    return table(Family::kStep, "", {grid_.step_bytes},
                 [&](const Place& at) -> Result<Point> { return step(static_cast<Bytes>(at[0]), *host); });
  }

  /// As an engine steps: tables to the device, one short op from a record, logits back.
  Result<Point> step(Bytes bytes, const Buffer& host) {
    Backend& backend = rig_.backend();
    const Tensor logits = rig_.tensor(DType::f32, {static_cast<std::int64_t>((bytes + 3) / 4)}),
                 a = rig_.tensor(DType::f32, {1, 64}), b = rig_.tensor(DType::f32, {1, 64});
    const std::uint64_t key = (std::uint64_t{1} << 62) + bytes;
    Point point{.bytes = static_cast<double>(bytes)};
    FATHOM_TRY(point.seconds, rig_.time_calls(15, [&]() -> Status {
      FATHOM_TRY(const bool called, backend.run_pass(key, [&] {
        backend.copy_in(a.data, host.data(), 256);
        ops_.copy({.x = a, .out = b});
      }));
      static_cast<void>(called);
      if (backend.host_addressable()) return backend.synchronize();
      return backend.download({host.data(), bytes}, logits.data);
    }));
    return point;
  }

  Rig& rig_;
  Ops& ops_;
  const Grid& grid_;
  const std::function<void()>& point_;
  std::vector<MeasuredTable> tables_;
};

}  // namespace

MeasuredTable make_table(Family family, std::string format, std::vector<std::vector<double>> axes) {
  MeasuredTable table;
  table.family = family;
  table.format = std::move(format);
  table.axes = std::move(axes);
  return table;
}

Status fill_table(MeasuredTable& table, const std::function<Result<Point>(const std::vector<double>&)>& time,
                  const std::function<void()>& point) {
  const std::size_t n = table.points();
  for (std::size_t i = 0; i < n; ++i) {
    std::vector<double> place(table.axes.size());
    std::size_t rest = i;
    for (std::size_t a = table.axes.size(); a-- > 0; rest /= table.axes[a].size())
      place[a] = table.axes[a][rest % table.axes[a].size()];
    FATHOM_TRY(const Point timed, time(place));
    table.seconds.push_back(timed.seconds);
    table.bytes.push_back(timed.bytes);
    table.flops.push_back(timed.flops);
    if (point) point();
  }
  return table.prepare();
}

std::size_t count_points(const Grid& g) {
  const std::size_t products = g.tokens.size() * g.widths.size() * g.widths.size() +
                               (g.formats.size() - 1) * g.few_tokens.size() * g.few_widths.size() * g.few_widths.size();
  const std::size_t attention =
      g.streams.size() * g.keys.size() * g.groups.size() +
      g.chunk_tokens.size() * g.reaches.size() * g.chunk_heads.size() * g.chunk_groups.size() +
      g.expanded_tokens.size() * g.latent_heads.size();
  const std::size_t latents = g.sequences.size() * g.latent_keys.size() * g.latent_heads.size() +
                              g.latent_tokens.size() * g.latent_reaches.size() * g.latent_chunk_heads.size();
  const std::size_t rows = g.row_tokens.size() * (g.row_queries.size() * g.row_keys.size() + 2 * g.latent_heads.size());
  const std::size_t experts =
      g.expert_tokens.size() * g.expert_hidden.size() * g.expert_inner.size() * g.expert_choices.size() +
      g.route_tokens.size() * g.route_experts.size();
  return 5 * products + 2 * g.few_tokens.size() * g.latent_heads.size() + attention + latents + rows + experts +
         g.bytes.size() + 3 + g.step_bytes.size();
}

Result<std::vector<MeasuredTable>> time_families(Rig& rig, const Grid& grid, const std::function<void()>& point) {
  return Families(rig, grid, point).run();
}

}  // namespace fathom::measure
