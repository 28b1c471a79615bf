// Cases of caches, of the indexer, and of pooling into entries. Rows that no token may see hold NaN.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "backends/op_case_segments.h"
#include "support/numbers.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary
using Kind = KvSegment::Kind;
constexpr DType kWrittenTypes[] = {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::i8, DType::f64};

OpCase cache_case(DType dtype, RowsOf rows, const std::string& name, const Chunks& sequences,
                  std::int64_t rows_per_slot, std::int64_t ratio, Shape row_shape, Layout layout) {
  const char* kind = rows == RowsOf::kPosition ? "position" : rows == RowsOf::kRing ? "ring" : "entry";
  return {.op = "cache_write",
          .name = fmt::format("cache_write/{}/{}/{}{}", dtype_name(dtype), kind, name,
                              layout == Layout::kDense ? "" : "_strided"),
          .format = cache_format(dtype),
          .exact = true,
          .body = [=](CaseRun& run) {
            const Batch& batch = run.batch(sequences);
            const auto shape = [&](std::int64_t n) {
              return row_shape.rank == 1 ? Shape{n, row_shape[0]} : Shape{n, row_shape[0], row_shape[1]};
            };
            const std::int64_t n = rows == RowsOf::kEntry ? max_entries(batch, ratio) : batch.tokens;
            const Tensor src = run.input(shape(n), normal(), layout);
            const Tensor cache =
                run.in_place("cache", dtype, shape(slots_of(sequences) * rows_per_slot), normal(), layout);
            run.ops.cache_write({.src = src,
                                 .cache = cache,
                                 .rows_per_slot = rows_per_slot,
                                 .rows = rows,
                                 .ratio = ratio,
                                 .batch = &batch});
          }};
}

/// Small whole numbers behind one that makes the row's scale in INT8 one.
Fill whole_rows(std::int64_t width) {
  return [=](Random& random, std::int64_t i) { return i % width == 0 ? 127.0 : integers(2)(random, i); };
}

OpCase index_case(DType cache, const std::string& name, const Chunks& sequences, const SegmentSpec& keys,
                  std::int64_t heads, std::int64_t width, std::int64_t count, bool exact, Fill fill = normal()) {
  return {.op = "index_select",
          .name = fmt::format("index_select/{}/{}", dtype_name(cache), name),
          .format = cache_format(cache),
          .exact = exact,
          .body = [=](CaseRun& run) {
            const Batch& batch = run.batch(sequences);
            const RowUse use = rows_used(keys, batch, slots_of(sequences));
            const bool fresh = keys.kind == Kind::kFresh || keys.kind == Kind::kFreshEntries;
            const Layout layout = exact ? Layout::kMisaligned : Layout::kDense;
            const Tensor q = run.input({batch.tokens, heads, width}, exact ? integers(2) : fill, layout);
            const Tensor weights = run.input({batch.tokens, heads}, exact ? integers(2) : normal(), layout);
            KvSegment segment{.kind = keys.kind,
                              .k = {},
                              .k_shared = {},
                              .v = {},
                              .rows_per_slot = keys.rows_per_slot,
                              .window = keys.window,
                              .ratio = keys.ratio,
                              .selected = {}};
            const Fill whole = cache == DType::i8 ? whole_rows(width) : integers(2);
            segment.k = run.input(fresh ? run.activation() : cache, {use.rows, 1, width},
                                  only_rows(use, width, exact ? whole : normal()), layout);
            run.ops.index_select({.q = q,
                                  .weights = weights,
                                  .keys = segment,
                                  .scale = exact ? 1.0 : 0.37,
                                  .selected = run.output("selected", DType::i32, {batch.tokens, count}),
                                  .batch = &batch});
          }};
}

}  // namespace

std::vector<OpCase> cache_cases() {
  std::vector<OpCase> cases;
  for (const DType dtype : kWrittenTypes)
    for (const Layout layout : {Layout::kDense, Layout::kMisaligned}) {
      cases.push_back(cache_case(dtype, RowsOf::kPosition, "decode", chunks({{2, 1, 0}, {0, 1, 9}, {1, 1, 19}}), 20, 1,
                                 {2, 9}, layout));
      cases.push_back(
          cache_case(dtype, RowsOf::kPosition, "chunks", chunks({{1, 7, 13}, {0, 20, 0}}), 20, 1, {33}, layout));
      cases.push_back(
          cache_case(dtype, RowsOf::kRing, "wraps", chunks({{0, 1, 0}, {1, 5, 6}, {2, 3, 31}}), 8, 1, {1, 16}, layout));
      cases.push_back(cache_case(dtype, RowsOf::kRing, "longer_than_ring", chunks({{1, 19, 5}, {0, 8, 0}, {2, 9, 0}}),
                                 8, 1, {17}, layout));
      cases.push_back(cache_case(dtype, RowsOf::kEntry, "closing_and_open",
                                 chunks({{0, 3, 0}, {1, 4, 0}, {2, 1, 3}, {3, 1, 4}, {4, 11, 6}, {5, 2, 5}}), 6, 4,
                                 {1, 8}, layout));
      cases.push_back(cache_case(dtype, RowsOf::kEntry, "ratio_1", chunks({{1, 3, 2}}), 6, 1, {5}, layout));
      cases.push_back(cache_case(dtype, RowsOf::kPosition, "zero_tokens", {}, 4, 1, {5}, layout));
    }
  return cases;
}

std::vector<OpCase> index_cases() {
  std::vector<OpCase> cases;
  const Chunks decode = chunks({{3, 1, 0}, {0, 1, 5}, {1, 1, 31}, {2, 1, 60}}),
               mixed = chunks({{1, 7, 0}, {0, 1, 40}, {2, 5, 13}}), fresh = chunks({{0, 19, 0}, {1, 6, 0}});
  const SegmentSpec cache{.kind = Kind::kCache, .rows_per_slot = 64},
      entries{.kind = Kind::kEntries, .rows_per_slot = 16, .ratio = 4};
  for (const bool exact : {false, true})  // exact: small whole numbers, full of ties
    for (const DType dtype : kWrittenTypes) {
      const std::string suffix = exact ? "_ties" : "";
      cases.push_back(index_case(dtype, "decode" + suffix, decode, cache, 4, 16, 8, exact));
      cases.push_back(index_case(dtype, "mixed" + suffix, mixed, cache, 3, 33, 5, exact));
      cases.push_back(index_case(dtype, "entries" + suffix, mixed, entries, 2, 24, 3, exact));
      cases.push_back(index_case(dtype, "more_than_seen" + suffix, decode, cache, 1, 8, 64, exact));
      if (dtype != DType::f32) continue;
      cases.push_back(index_case(dtype, "fresh" + suffix, fresh, {.kind = Kind::kFresh}, 4, 16, 4, exact));
      cases.push_back(index_case(dtype, "fresh_entries" + suffix, fresh, {.kind = Kind::kFreshEntries, .ratio = 4}, 4,
                                 16, 2, exact));
      cases.push_back(index_case(dtype, "long" + suffix, chunks({{0, 1, 1500}}),
                                 {.kind = Kind::kCache, .rows_per_slot = 1501}, 2, 8, 128, exact));
      cases.push_back(index_case(dtype, "zero_tokens" + suffix, {}, {.kind = Kind::kFresh}, 2, 8, 4, exact));
    }
  cases.push_back(index_case(DType::f32, "nan_query", fresh, {.kind = Kind::kFresh}, 1, 8, 4, false,
                             with(normal(), {{8 * 9 + 1, kNaN}})));
  return cases;
}

std::vector<OpCase> compress_cases() {
  struct Spec {
    const char* name;
    Chunks sequences;
    std::int64_t ratio, d;
    bool overlap;
    Layout layout;
    Fill gate;
    bool places = true;
  };
  const Chunks fresh = chunks({{0, 21, 0}, {1, 3, 0}, {2, 8, 0}}),
               going_on = chunks({{0, 1, 3}, {1, 1, 4}, {2, 9, 6}, {3, 2, 13}, {4, 12, 0}, {5, 1, 7}});
  std::vector<OpCase> cases;
  for (const bool overlap : {false, true})
    for (const Spec& spec :
         {Spec{"fresh_of_4", fresh, 4, 16, overlap, Layout::kDense, normal()},
          Spec{"fresh_of_3", fresh, 3, 33, overlap, Layout::kMisaligned, normal(2.0)},
          Spec{"going_on_of_4", going_on, 4, 17, overlap, Layout::kStrided, normal()},
          Spec{"going_on_of_2", going_on, 2, 8, overlap, Layout::kDense, normal(30.0)},
          Spec{"going_on_of_1", going_on, 1, 5, overlap, Layout::kDense, normal()},
          Spec{"of_128", chunks({{0, 200, 100}, {1, 1, 127}, {2, 127, 0}}), 128, 24, overlap, Layout::kDense, normal()},
          Spec{"no_places", going_on, 4, 9, overlap, Layout::kDense, normal(), false},
          Spec{"zero_tokens", {}, 4, 8, overlap, Layout::kDense, normal()},
          Spec{"nan_gate", fresh, 4, 8, overlap, Layout::kDense, with(normal(), {{3, kNaN}})}})
      for (const DType state : {DType::f32, DType::bf16}) {
        const bool past =
            std::any_of(spec.sequences.begin(), spec.sequences.end(), [](const Sequence& s) { return s.past > 0; });
        if (!past && state != DType::f32) continue;
        cases.push_back(
            {.op = "compress",
             .name = fmt::format("compress/{}/{}{}", dtype_name(state), spec.name, overlap ? "_overlap" : ""),
             .format = plain_weight_format(state),
             .body = [=](CaseRun& run) {
               const Batch& batch = run.batch(spec.sequences);
               const std::int64_t w = spec.overlap ? 2 * spec.d : spec.d,
                                  state_rows = spec.overlap ? 2 * spec.ratio : spec.ratio,
                                  slots = slots_of(spec.sequences);
               // Rows of the state that a window of this batch reaches back to; the others hold NaN.
               RowUse use{.seen = {}, .rows = slots * state_rows};
               for (const Sequence& s : batch.sequences)
                 for (std::int64_t p =
                          std::max<std::int64_t>(0, s.past / spec.ratio - (spec.overlap ? 1 : 0)) * spec.ratio;
                      p < s.past; ++p)
                   use.seen.insert(s.slot * state_rows + p % state_rows);
               const Tensor kv = run.input({batch.tokens, w}, normal(), spec.layout),
                            gate = run.input({batch.tokens, w}, spec.gate, spec.layout);
               const Tensor ape = spec.places ? run.input(run.wide(), {spec.ratio, w}, normal()) : Tensor{};
               const Tensor state_kv =
                   past ? run.input(state, {use.rows, w}, only_rows(use, w, normal()), spec.layout) : Tensor{};
               const Tensor state_gate =
                   past ? run.input(state, {use.rows, w}, only_rows(use, w, normal()), spec.layout) : Tensor{};
               const std::int64_t rows = max_entries(batch, spec.ratio);
               run.ops.compress({.kv = kv,
                                 .gate = gate,
                                 .ape = ape,
                                 .state_kv = state_kv,
                                 .state_gate = state_gate,
                                 .state_rows = past ? state_rows : 0,
                                 .ratio = spec.ratio,
                                 .overlap = spec.overlap,
                                 .out = run.output("out", {rows, spec.d}, spec.layout),
                                 .positions = run.output("positions", DType::i32, {rows}),
                                 .batch = &batch});
             }});
      }
  return cases;
}

}  // namespace fathom::test
