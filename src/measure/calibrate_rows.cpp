#include "measure/calibrate_tables.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary
using plan::Family;

/// Rotations, and rows written to caches. Those of single tokens are timed with the attention that follows them, less
/// that attention alone: devices may do both at once. Where the columns are no heads that could share the keys: alone.
class RowTables : Tables {
 public:
  explicit RowTables(const Tables& tables) : Tables(tables) {}

  Status run() {
    FATHOM_TRY_VOID(table(Family::kRows, "", {grid_.row_tokens, grid_.row_queries, grid_.row_keys},
                          [&](const Place& at) { return rotate(whole(at[0]), whole(at[1]), whole(at[2])); }));
    for (const Family family : {Family::kLatentRows, Family::kLatentFresh})
      FATHOM_TRY_VOID(table(family, "", {grid_.row_tokens, grid_.latent_heads}, [&](const Place& at) {
        return rotate_latent(whole(at[0]), whole(at[1]), family == Family::kLatentRows);
      }));
    return {};
  }

 private:
  static constexpr std::int64_t kKeys = 64;  // that attention looks at: few, so that it does not hide the rest

  /// One sequence of many tokens, or as many sequences of one.
  std::unique_ptr<Rig::Tokens> some_tokens(std::int64_t t) {
    return recorded(num(t)) ? rig_.tokens(t, 1, kKeys - 1) : rig_.tokens(1, t, 0);
  }
  static std::int64_t slot_rows(const Rig::Tokens& tokens) {
    return tokens.batch.sequences.front().past + tokens.batch.sequences.front().tokens;
  }

  /// Seconds of `rows` before `others`, beyond those of `others` alone.
  Result<double> time_before(const std::function<void(int)>& rows,
                             const std::vector<std::function<void(int)>>& others) {
    FATHOM_TRY(double seconds, rig_.time(true, 0, [&](int call) {
      rows(call);
      for (const auto& other : others) other(call);
    }));
    for (const auto& other : others) {
      FATHOM_TRY(const double alone, rig_.time(true, 0, other));
      seconds -= alone;
    }
    return std::max(seconds, kLeastSeconds);
  }
  static constexpr double kLeastSeconds = 2e-7;  // tables have no zeros

  Result<Point> rotate(std::int64_t t, std::int64_t queries, std::int64_t keys) {
    const auto tokens = some_tokens(t);
    const std::int64_t rows = slot_rows(*tokens), slots = std::ssize(tokens->sequences);
    const Tensor q = rig_.tensor(DType::f32, {t, queries}), k = rig_.tensor(DType::f32, {t, keys}),
                 v = rig_.tensor(DType::f32, {t, keys}), out = rig_.tensor(DType::f32, {t, queries});
    const Tensor cos = rig_.tensor(DType::f32, {t, kHeadDim / 2}), sin = rig_.tensor(DType::f32, {t, kHeadDim / 2});
    const Tensor k_cache = rig_.cache({slots * rows, keys}), v_cache = rig_.cache({slots * rows, keys});
    Point point{.bytes = num(t) * (8.0 * num(queries) + 8.0 * num(keys) + 2 * 4.0 * num(kHeadDim) +
                                   2 * (4.0 + 2.0) * num(keys))};
    const auto make_rows = [&](int) {
      ops_.rope({.x = q.split_last(kHeadDim), .cos = cos, .sin = sin});
      ops_.rope({.x = k.split_last(kHeadDim), .cos = cos, .sin = sin});
      ops_.cache_write({.src = k, .cache = k_cache, .rows_per_slot = rows, .batch = &tokens->batch});
      ops_.cache_write({.src = v, .cache = v_cache, .rows_per_slot = rows, .batch = &tokens->batch});
    };
    if (!recorded(num(t)) || queries % keys != 0) {
      FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), 0, make_rows));
      return point;
    }
    const KvSegment segment{.kind = KvSegment::Kind::kCache,
                            .k = k_cache.split_last(kHeadDim),
                            .k_shared = {},
                            .v = v_cache.split_last(kHeadDim),
                            .rows_per_slot = rows,
                            .selected = {}};
    const auto attend = [&](int) {
      ops_.attention({.q = q.split_last(kHeadDim),
                      .segments = {&segment, 1},
                      .scale = 0.0884,
                      .sink = {},
                      .out = out.split_last(kHeadDim),
                      .lse = {},
                      .batch = &tokens->batch});
    };
    FATHOM_TRY(point.seconds, time_before(make_rows, {attend}));
    return point;
  }

  Result<Point> rotate_latent(std::int64_t t, std::int64_t heads, bool absorbed) {
    const auto tokens = some_tokens(t);
    const std::int64_t rows = slot_rows(*tokens), slots = std::ssize(tokens->sequences);
    const Tensor q = rig_.tensor(DType::f32, {t, heads, kHeadDim + kRope}),
                 kv = rig_.tensor(DType::f32, {t, kLatent + kRope}), latent = rig_.tensor(DType::f32, {t, kLatent});
    const Tensor cos = rig_.tensor(DType::f32, {t, kRope / 2}), sin = rig_.tensor(DType::f32, {t, kRope / 2}),
                 absorbed_q = rig_.tensor(DType::f32, {t, heads, kLatent + kRope}),
                 out = rig_.tensor(DType::f32, {t, heads, kLatent});
    const Tensor norm = rig_.tensor(DType::f32, {kLatent}), cache = rig_.cache({slots * rows, kLatent + kRope});
    const double rope_bytes = 8.0 * num(t) * num(heads + 1) * num(kRope) + 2 * 4.0 * num(t) * num(kRope),
                 writes = num(t) * (4.0 + 2.0) * num(kLatent + kRope);
    Point point{.bytes = rope_bytes + 8.0 * num(t) * num(kLatent) + writes +
                         (absorbed ? 8.0 * num(t) * num(heads) * num(kRope) : 0.0)};
    const auto make_rows = [&](int) {
      ops_.rope({.x = q, .cos = cos, .sin = sin, .first_dim = kHeadDim, .interleaved = true});
      ops_.rope({.x = kv.columns(kLatent, kRope).split_last(kRope), .cos = cos, .sin = sin, .interleaved = true});
      ops_.rms_norm({.x = kv.columns(0, kLatent), .weight = norm, .eps = 1e-6, .out = latent});
      ops_.cache_write(
          {.src = latent, .cache = cache.columns(0, kLatent), .rows_per_slot = rows, .batch = &tokens->batch});
      ops_.cache_write({.src = kv.columns(kLatent, kRope),
                        .cache = cache.columns(kLatent, kRope),
                        .rows_per_slot = rows,
                        .batch = &tokens->batch});
      if (absorbed) ops_.copy({.x = q.columns(kHeadDim, kRope), .out = absorbed_q.columns(kLatent, kRope)});
    };
    if (!recorded(num(t)) || !absorbed) {
      FATHOM_TRY(point.seconds, rig_.time(recorded(num(t)), 0, make_rows));
      return point;
    }
    const WeightFormat format = *parse_weight_format(grid_.formats.front());
    const auto absorb = [&](int) {
      ops_.grouped_linear({.x = q.columns(0, kHeadDim),
                           .weight = rig_.weight(format, heads * 2 * kHeadDim, kLatent),
                           .group_rows = 2 * kHeadDim,
                           .row_offset = 0,
                           .rows = kHeadDim,
                           .transposed = true,
                           .out = absorbed_q.columns(0, kLatent)});
    };
    const Tensor keys = cache.columns(0, kLatent).split_last(kLatent);
    const KvSegment segment{.kind = KvSegment::Kind::kCache,
                            .k = keys,
                            .k_shared = cache.columns(kLatent, kRope),
                            .v = keys,
                            .rows_per_slot = rows,
                            .selected = {}};
    const auto attend = [&](int) {
      ops_.attention({.q = absorbed_q,
                      .segments = {&segment, 1},
                      .scale = 0.0884,
                      .sink = {},
                      .out = out,
                      .lse = {},
                      .batch = &tokens->batch,
                      .only_products = true});
    };
    FATHOM_TRY(point.seconds, time_before(make_rows, {absorb, attend}));
    return point;
  }
};

}  // namespace

Status time_rows(const Tables& tables) { return RowTables(tables).run(); }

}  // namespace fathom::measure
