#include "measure/calibrate_before.h"
#include "measure/calibrate_tables.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary
using plan::Family;

/// Rotations, and rows written to caches, by themselves. (Those of steps of decoding are in attention's tables.)
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
  static std::int64_t slot_rows(const Rig::Tokens& tokens) { return tokens.batch.sequences.front().tokens; }

  Result<Point> rotate(std::int64_t t, std::int64_t queries, std::int64_t keys) {
    const auto tokens = some_tokens(t);
    const std::int64_t rows = slot_rows(*tokens), slots = std::ssize(tokens->sequences);
    const HeadRows before(rig_, t, queries, keys, kHeadDim);
    const Tensor k_cache = rig_.cache({slots * rows, keys}), v_cache = rig_.cache({slots * rows, keys});
    Point point{.bytes = num(t) * (8.0 * num(queries) + 8.0 * num(keys) + 2 * 4.0 * num(kHeadDim) +
                                   2 * (4.0 + 2.0) * num(keys))};
    FATHOM_TRY(point.seconds,
               rig_.time(recorded(num(t)), 0, [&](int) { before.make(ops_, k_cache, v_cache, tokens->batch, rows); }));
    return point;
  }

  Result<Point> rotate_latent(std::int64_t t, std::int64_t heads, bool absorbed) {
    const auto tokens = some_tokens(t);
    const std::int64_t rows = slot_rows(*tokens), slots = std::ssize(tokens->sequences);
    const LatentRows before(rig_, t, heads);
    const Tensor cache = rig_.cache({slots * rows, kLatent + kRope});
    const double rope_bytes = 8.0 * num(t) * num(heads + 1) * num(kRope) + 2 * 4.0 * num(t) * num(kRope),
                 writes = num(t) * (4.0 + 2.0) * num(kLatent + kRope);
    Point point{.bytes = rope_bytes + 8.0 * num(t) * num(kLatent) + writes +
                         (absorbed ? 8.0 * num(t) * num(heads) * num(kRope) : 0.0)};
    FATHOM_TRY(point.seconds,
               rig_.time(recorded(num(t)), 0, [&](int) { before.make(ops_, cache, tokens->batch, rows, absorbed); }));
    return point;
  }
};

}  // namespace

Status time_rows(const Tables& tables) { return RowTables(tables).run(); }

}  // namespace fathom::measure
