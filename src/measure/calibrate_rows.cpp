#include "measure/calibrate_tables.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary
using plan::Family;

/// Rotations, and rows written to caches.
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
};

}  // namespace

Status time_rows(const Tables& tables) { return RowTables(tables).run(); }

}  // namespace fathom::measure
