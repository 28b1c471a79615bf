// Cases of the family attention: caches, attention, the indexer. Rows of a cache that no token may see hold NaN.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "backends/op_case_run.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary
using Kind = KvSegment::Kind;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr DType kCacheTypes[] = {DType::f32, DType::f16, DType::bf16, DType::f64};

using Chunks = std::vector<Sequence>;
/// Sequences by (slot, tokens, past); first_token is filled in by CaseRun::batch.
Chunks chunks(std::initializer_list<std::array<std::int32_t, 3>> list) {
  Chunks out;
  for (const auto& [slot, tokens, past] : list) out.push_back({.slot = slot, .first_token = 0, .tokens = tokens, .past = past});
  return out;
}
std::int64_t slots_of(const Chunks& sequences) {
  std::int64_t slots = 1;
  for (const Sequence& sequence : sequences) slots = std::max<std::int64_t>(slots, sequence.slot + 1);
  return slots + 1;  // one more than is used
}

struct SegmentSpec {
  Kind kind = Kind::kFresh;
  std::int64_t rows_per_slot = 0, window = 0, ratio = 1, selected = 0;
};

/// Names (positions or entries) that a token at `position` sees.
std::pair<std::int64_t, std::int64_t> names_seen(const SegmentSpec& spec, std::int64_t past, std::int64_t position) {
  const std::int64_t window_start = spec.window > 0 ? std::max<std::int64_t>(0, position + 1 - spec.window) : 0;
  if (spec.kind == Kind::kCache) return {0, position + 1};
  if (spec.kind == Kind::kFresh) return {std::max(past, window_start), position + 1};
  if (spec.kind == Kind::kRingPast) return {std::max({std::int64_t{0}, window_start, past - spec.rows_per_slot}), past};
  return {0, (position + 1) / spec.ratio};
}

/// Rows of a segment's tensors that some token sees, and how many rows there are.
struct RowUse {
  std::set<std::int64_t> seen;
  std::int64_t rows = 0;
};

RowUse rows_used(const SegmentSpec& spec, const Batch& batch, std::int64_t slots) {
  RowUse use;
  std::int64_t first_entry = 0;
  for (const Sequence& sequence : batch.sequences) {
    for (std::int64_t i = 0; i < sequence.tokens; ++i) {
      const auto [first, end] = names_seen(spec, sequence.past, sequence.past + i);
      for (std::int64_t name = first; name < end; ++name) {
        const std::int64_t slot_row = sequence.slot * spec.rows_per_slot;
        if (spec.kind == Kind::kFresh) use.seen.insert(sequence.first_token + name - sequence.past);
        else if (spec.kind == Kind::kFreshEntries) use.seen.insert(first_entry + name);
        else use.seen.insert(slot_row + (spec.kind == Kind::kRingPast ? name % spec.rows_per_slot : name));
      }
    }
    first_entry += max_entries(sequence.tokens, spec.ratio);
  }
  use.rows = spec.kind == Kind::kFresh ? batch.tokens : spec.kind == Kind::kFreshEntries ? first_entry : slots * spec.rows_per_slot;
  return use;
}

Fill only_rows(const RowUse& use, std::int64_t row_elements, Fill fill) {
  return [=](Random& random, std::int64_t i) {
    const double value = fill(random, i);
    return use.seen.contains(i / row_elements) ? value : kNaN;
  };
}

/// [T, n]: for each token some of the rows it sees, ascending, then -1.
Tensor make_selected(CaseRun& run, const SegmentSpec& spec, const Batch& batch) {
  std::vector<std::int64_t> all;
  for (const Sequence& sequence : batch.sequences)
    for (std::int64_t i = 0; i < sequence.tokens; ++i) {
      const auto [first, end] = names_seen(spec, sequence.past, sequence.past + i);
      std::vector<std::int64_t> names;
      for (std::int64_t name = first; name < end; ++name) names.push_back(name);
      for (std::size_t n = names.size(); n > 1; --n) std::swap(names[n - 1], names[static_cast<std::size_t>(run.random.below(static_cast<std::int64_t>(n)))]);
      names.resize(std::min(names.size(), static_cast<std::size_t>(spec.selected)));
      std::sort(names.begin(), names.end());
      names.resize(static_cast<std::size_t>(spec.selected), -1);
      all.insert(all.end(), names.begin(), names.end());
    }
  return run.ints(DType::i32, {batch.tokens, spec.selected}, all);
}

struct AttentionSpec {
  std::string name;
  Chunks sequences;
  std::int64_t heads = 1, kv_heads = 1, dk = 8, dr = 0, dv = 8;
  std::vector<SegmentSpec> segments;
  bool value_is_key = false, sink = false, lse = false;
  Layout layout = Layout::kDense;
  Fill q = normal(), kv = normal();
  double magnitude = 1;
};

OpCase attention_case(const AttentionSpec& spec, DType cache) {
  return {.op = "attention", .name = fmt::format("attention/{}/{}", dtype_name(cache), spec.name), .format = plain_weight_format(cache), .exact = false, .magnitude = spec.magnitude, .body = [=](CaseRun& run) {
    const Batch& batch = run.batch(spec.sequences);
    const Tensor q = run.input({batch.tokens, spec.heads, spec.dk + spec.dr}, spec.q, spec.layout);
    std::vector<KvSegment> segments;
    for (const SegmentSpec& part : spec.segments) {
      const RowUse use = rows_used(part, batch, slots_of(spec.sequences));
      const DType dtype = part.kind == Kind::kFresh || part.kind == Kind::kFreshEntries ? run.activation() : cache;
      KvSegment segment{.kind = part.kind, .k = {}, .k_shared = {}, .v = {}, .rows_per_slot = part.rows_per_slot, .window = part.window, .ratio = part.ratio, .selected = {}};
      segment.k = run.input(dtype, {use.rows, spec.kv_heads, spec.dk}, only_rows(use, spec.kv_heads * spec.dk, spec.kv), spec.layout);
      if (spec.dr > 0) segment.k_shared = run.input(dtype, {use.rows, spec.dr}, only_rows(use, spec.dr, spec.kv), spec.layout);
      segment.v = spec.value_is_key ? segment.k.columns(0, spec.dv) : run.input(dtype, {use.rows, spec.kv_heads, spec.dv}, only_rows(use, spec.kv_heads * spec.dv, spec.kv), spec.layout);
      if (part.selected > 0) segment.selected = make_selected(run, part, batch);
      segments.push_back(segment);
    }
    const Tensor sink = spec.sink ? run.input(run.wide(), {spec.heads}, normal(2.0)) : Tensor{};
    const Tensor lse = spec.lse ? run.output("lse", run.wide(), {batch.tokens, spec.heads}) : Tensor{};
    const Tensor out = run.output("out", {batch.tokens, spec.heads, spec.dv}, spec.layout);
    run.ops.attention({.q = q, .segments = segments, .scale = 1.0 / std::sqrt(static_cast<double>(spec.dk + spec.dr)), .sink = sink, .out = out, .lse = lse, .batch = &batch});
  }};
}

std::vector<AttentionSpec> cached_specs() {
  const Chunks decode = chunks({{3, 1, 0}, {0, 1, 5}, {1, 1, 31}, {4, 1, 64}, {2, 1, 100}}), mixed = chunks({{1, 7, 0}, {0, 1, 40}, {2, 5, 13}});
  const SegmentSpec cache{.kind = Kind::kCache, .rows_per_slot = 101}, big{.kind = Kind::kCache, .rows_per_slot = 1601};
  const SegmentSpec ring{.kind = Kind::kRingPast, .rows_per_slot = 8, .window = 8}, wide_ring{.kind = Kind::kRingPast, .rows_per_slot = 11, .window = 8};
  const SegmentSpec window{.kind = Kind::kFresh, .window = 8};
  const auto entries = [](std::int64_t ratio, std::int64_t selected) { return SegmentSpec{.kind = Kind::kEntries, .rows_per_slot = 128 / ratio + 1, .ratio = ratio, .selected = selected}; };
  return {
      {"decode_mha", decode, 4, 4, 16, 0, 16, {cache}},
      {"decode_gqa_d64", decode, 8, 2, 64, 0, 64, {cache}, false, false, true},
      {"decode_mqa_d33", decode, 5, 1, 33, 0, 17, {cache}, false, false, false, Layout::kStrided},
      {"decode_latent", decode, 16, 1, 32, 8, 32, {cache}, true, false, false, Layout::kStrided},
      {"decode_latent_misaligned", decode, 3, 1, 70, 6, 65, {cache}, true, false, true, Layout::kMisaligned},
      {"prefill_chunk", chunks({{0, 16, 16}}), 4, 2, 24, 0, 24, {cache}},
      {"prefill_expanded", mixed, 4, 4, 24, 8, 16, {cache}, false, false, true},
      {"mixed_gqa", mixed, 6, 3, 20, 0, 20, {cache}, false, false, true, Layout::kStrided},
      {"long_decode", chunks({{0, 1, 1600}, {1, 1, 511}, {2, 1, 512}}), 4, 2, 16, 0, 16, {big}, false, false, true},
      {"long_chunk", chunks({{1, 130, 70}}), 2, 1, 16, 0, 8, {{.kind = Kind::kCache, .rows_per_slot = 200}}},
      {"selected", mixed, 4, 1, 24, 8, 24, {{.kind = Kind::kCache, .rows_per_slot = 64, .selected = 4}}, true, false, true},
      {"selected_more_than_seen", mixed, 4, 2, 16, 0, 16, {{.kind = Kind::kCache, .rows_per_slot = 64, .selected = 50}}},
      {"ring_fresh", chunks({{0, 1, 0}, {1, 1, 3}, {2, 1, 8}, {3, 1, 20}, {4, 1, 25}}), 4, 1, 16, 0, 16, {ring, window}, true, true, true},
      {"ring_fresh_chunks", chunks({{0, 12, 0}, {1, 5, 3}, {2, 9, 20}, {3, 1, 7}, {4, 8, 8}}), 4, 1, 17, 0, 17, {wide_ring, window}, true, true, true, Layout::kStrided},
      {"ring_fresh_entries", chunks({{0, 1, 0}, {1, 1, 3}, {2, 1, 15}, {3, 6, 25}, {4, 9, 111}}), 4, 1, 32, 0, 32, {ring, window, entries(4, 0)}, true, true, true},
      {"ring_fresh_entries_selected", chunks({{0, 1, 0}, {1, 3, 2}, {2, 1, 64}, {3, 6, 25}}), 8, 1, 24, 0, 24, {wide_ring, window, entries(4, 5)}, true, true, true},
      {"ring_fresh_entries_of_16", chunks({{0, 20, 0}, {1, 17, 15}, {2, 1, 127}}), 2, 1, 12, 0, 12, {ring, window, entries(16, 0)}, true, true, false},
  };
}

std::vector<AttentionSpec> fresh_specs() {
  const Chunks one = chunks({{0, 17, 0}}), three = chunks({{0, 5, 0}, {1, 1, 0}, {2, 9, 0}});
  const SegmentSpec fresh{.kind = Kind::kFresh};
  return {
      {"fresh_single", chunks({{0, 1, 0}}), 1, 1, 1, 0, 1, {fresh}, false, false, true},
      {"fresh_mha", one, 4, 4, 8, 0, 8, {fresh}, false, false, true},
      {"fresh_gqa_d128", one, 4, 2, 128, 0, 128, {fresh}, false, false, true},
      {"fresh_mqa_d33", three, 6, 1, 33, 0, 20, {fresh}, false, false, true, Layout::kMisaligned},
      {"fresh_expanded_latent", three, 4, 4, 24, 8, 16, {fresh}, false, false, true, Layout::kStrided},
      {"fresh_sink", three, 4, 2, 16, 0, 16, {fresh}, false, true, true},
      {"fresh_window_4", one, 2, 1, 16, 0, 16, {{.kind = Kind::kFresh, .window = 4}}, true, true, true},
      {"fresh_window_1", three, 2, 2, 16, 0, 16, {{.kind = Kind::kFresh, .window = 1}}, false, false, true},
      {"fresh_selected", three, 4, 2, 16, 0, 16, {{.kind = Kind::kFresh, .selected = 3}}, false, false, true},
      {"fresh_long", chunks({{0, 129, 0}, {1, 65, 0}}), 2, 1, 16, 0, 16, {fresh}, false, false, true},
      {"fresh_and_entries", chunks({{0, 21, 0}, {1, 3, 0}, {2, 8, 0}}), 4, 1, 16, 0, 16, {{.kind = Kind::kFresh, .window = 5}, {.kind = Kind::kFreshEntries, .ratio = 4}}, true, true, true},
      {"fresh_and_entries_selected", chunks({{0, 30, 0}, {1, 7, 0}}), 4, 1, 20, 0, 20, {{.kind = Kind::kFresh, .window = 5}, {.kind = Kind::kFreshEntries, .ratio = 4, .selected = 2}}, true, true, true, Layout::kStrided},
      {"zero_tokens", {}, 2, 1, 8, 0, 8, {fresh}, false, false, true},
      {"uniform", one, 2, 2, 16, 0, 16, {fresh}, false, false, true, Layout::kDense, constant(0.0)},
      {"sharp", one, 2, 2, 16, 0, 16, {fresh}, false, false, true, Layout::kDense, normal(300.0), normal(), 100.0},
      {"huge_scores", one, 2, 2, 16, 0, 16, {fresh}, false, false, false, Layout::kDense, integers(1), with(constant(1e4), {{40, -1e4}, {200, 3e4}}), 1e4},
      {"nan_query", one, 2, 2, 8, 0, 8, {fresh}, false, false, true, Layout::kDense, with(normal(), {{5 * 16 + 3, kNaN}})},
      {"nan_key_of_last", one, 2, 2, 8, 0, 8, {fresh}, false, false, true, Layout::kDense, normal(), with(normal(), {{16 * 16 + 11, kNaN}})},
  };
}

OpCase cache_case(DType dtype, RowsOf rows, const std::string& name, const Chunks& sequences, std::int64_t rows_per_slot, std::int64_t ratio, Shape row_shape, Layout layout) {
  const char* kind = rows == RowsOf::kPosition ? "position" : rows == RowsOf::kRing ? "ring" : "entry";
  return {.op = "cache_write", .name = fmt::format("cache_write/{}/{}/{}{}", dtype_name(dtype), kind, name, layout == Layout::kDense ? "" : "_strided"), .format = plain_weight_format(dtype), .exact = true, .body = [=](CaseRun& run) {
    const Batch& batch = run.batch(sequences);
    const auto shape = [&](std::int64_t n) { return row_shape.rank == 1 ? Shape{n, row_shape[0]} : Shape{n, row_shape[0], row_shape[1]}; };
    const std::int64_t n = rows == RowsOf::kEntry ? max_entries(batch, ratio) : batch.tokens;
    const Tensor src = run.input(shape(n), normal(), layout);
    const Tensor cache = run.in_place("cache", dtype, shape(slots_of(sequences) * rows_per_slot), normal(), layout);
    run.ops.cache_write({.src = src, .cache = cache, .rows_per_slot = rows_per_slot, .rows = rows, .ratio = ratio, .batch = &batch});
  }};
}

OpCase index_case(DType cache, const std::string& name, const Chunks& sequences, const SegmentSpec& keys, std::int64_t heads, std::int64_t width, std::int64_t count, bool exact, Fill fill = normal()) {
  return {.op = "index_select", .name = fmt::format("index_select/{}/{}", dtype_name(cache), name), .format = plain_weight_format(cache), .exact = exact, .body = [=](CaseRun& run) {
    const Batch& batch = run.batch(sequences);
    const RowUse use = rows_used(keys, batch, slots_of(sequences));
    const bool fresh = keys.kind == Kind::kFresh || keys.kind == Kind::kFreshEntries;
    const Layout layout = exact ? Layout::kMisaligned : Layout::kDense;
    const Tensor q = run.input({batch.tokens, heads, width}, exact ? integers(2) : fill, layout);
    const Tensor weights = run.input({batch.tokens, heads}, exact ? integers(2) : normal(), layout);
    KvSegment segment{.kind = keys.kind, .k = {}, .k_shared = {}, .v = {}, .rows_per_slot = keys.rows_per_slot, .window = keys.window, .ratio = keys.ratio, .selected = {}};
    segment.k = run.input(fresh ? run.activation() : cache, {use.rows, 1, width}, only_rows(use, width, exact ? integers(2) : normal()), layout);
    run.ops.index_select({.q = q, .weights = weights, .keys = segment, .scale = exact ? 1.0 : 0.37, .selected = run.output("selected", DType::i32, {batch.tokens, count}), .batch = &batch});
  }};
}

}  // namespace

std::vector<OpCase> cache_cases() {
  std::vector<OpCase> cases;
  for (const DType dtype : kCacheTypes)
    for (const Layout layout : {Layout::kDense, Layout::kMisaligned}) {
      cases.push_back(cache_case(dtype, RowsOf::kPosition, "decode", chunks({{2, 1, 0}, {0, 1, 9}, {1, 1, 19}}), 20, 1, {2, 9}, layout));
      cases.push_back(cache_case(dtype, RowsOf::kPosition, "chunks", chunks({{1, 7, 13}, {0, 20, 0}}), 20, 1, {33}, layout));
      cases.push_back(cache_case(dtype, RowsOf::kRing, "wraps", chunks({{0, 1, 0}, {1, 5, 6}, {2, 3, 31}}), 8, 1, {1, 16}, layout));
      cases.push_back(cache_case(dtype, RowsOf::kRing, "longer_than_ring", chunks({{1, 19, 5}, {0, 8, 0}, {2, 9, 0}}), 8, 1, {17}, layout));
      cases.push_back(cache_case(dtype, RowsOf::kEntry, "closing_and_open", chunks({{0, 3, 0}, {1, 4, 0}, {2, 1, 3}, {3, 1, 4}, {4, 11, 6}, {5, 2, 5}}), 6, 4, {1, 8}, layout));
      cases.push_back(cache_case(dtype, RowsOf::kEntry, "ratio_1", chunks({{1, 3, 2}}), 6, 1, {5}, layout));
      cases.push_back(cache_case(dtype, RowsOf::kPosition, "zero_tokens", {}, 4, 1, {5}, layout));
    }
  return cases;
}

std::vector<OpCase> attention_cases() {
  std::vector<OpCase> cases;
  for (const DType dtype : kCacheTypes)
    for (const AttentionSpec& spec : cached_specs()) cases.push_back(attention_case(spec, dtype));
  for (const AttentionSpec& spec : fresh_specs()) cases.push_back(attention_case(spec, DType::f32));
  return cases;
}

std::vector<OpCase> index_cases() {
  std::vector<OpCase> cases;
  const Chunks decode = chunks({{3, 1, 0}, {0, 1, 5}, {1, 1, 31}, {2, 1, 60}}), mixed = chunks({{1, 7, 0}, {0, 1, 40}, {2, 5, 13}}), fresh = chunks({{0, 19, 0}, {1, 6, 0}});
  const SegmentSpec cache{.kind = Kind::kCache, .rows_per_slot = 64}, entries{.kind = Kind::kEntries, .rows_per_slot = 16, .ratio = 4};
  for (const bool exact : {false, true})  // exact: small whole numbers, full of ties
    for (const DType dtype : kCacheTypes) {
      const std::string suffix = exact ? "_ties" : "";
      cases.push_back(index_case(dtype, "decode" + suffix, decode, cache, 4, 16, 8, exact));
      cases.push_back(index_case(dtype, "mixed" + suffix, mixed, cache, 3, 33, 5, exact));
      cases.push_back(index_case(dtype, "entries" + suffix, mixed, entries, 2, 24, 3, exact));
      cases.push_back(index_case(dtype, "more_than_seen" + suffix, decode, cache, 1, 8, 64, exact));
      if (dtype != DType::f32) continue;
      cases.push_back(index_case(dtype, "fresh" + suffix, fresh, {.kind = Kind::kFresh}, 4, 16, 4, exact));
      cases.push_back(index_case(dtype, "fresh_entries" + suffix, fresh, {.kind = Kind::kFreshEntries, .ratio = 4}, 4, 16, 2, exact));
      cases.push_back(index_case(dtype, "long" + suffix, chunks({{0, 1, 1500}}), {.kind = Kind::kCache, .rows_per_slot = 1501}, 2, 8, 128, exact));
      cases.push_back(index_case(dtype, "zero_tokens" + suffix, {}, {.kind = Kind::kFresh}, 2, 8, 4, exact));
    }
  cases.push_back(index_case(DType::f32, "nan_query", fresh, {.kind = Kind::kFresh}, 1, 8, 4, false, with(normal(), {{8 * 9 + 1, kNaN}})));
  return cases;
}

std::vector<OpCase> compress_cases() {
  struct Spec { const char* name; Chunks sequences; std::int64_t ratio, d; bool overlap; Layout layout; Fill gate; bool places = true; };
  const Chunks fresh = chunks({{0, 21, 0}, {1, 3, 0}, {2, 8, 0}}), going_on = chunks({{0, 1, 3}, {1, 1, 4}, {2, 9, 6}, {3, 2, 13}, {4, 12, 0}, {5, 1, 7}});
  std::vector<OpCase> cases;
  for (const bool overlap : {false, true})
    for (const Spec& spec : {Spec{"fresh_of_4", fresh, 4, 16, overlap, Layout::kDense, normal()}, Spec{"fresh_of_3", fresh, 3, 33, overlap, Layout::kMisaligned, normal(2.0)},
                             Spec{"going_on_of_4", going_on, 4, 17, overlap, Layout::kStrided, normal()}, Spec{"going_on_of_2", going_on, 2, 8, overlap, Layout::kDense, normal(30.0)},
                             Spec{"going_on_of_1", going_on, 1, 5, overlap, Layout::kDense, normal()}, Spec{"of_128", chunks({{0, 200, 100}, {1, 1, 127}, {2, 127, 0}}), 128, 24, overlap, Layout::kDense, normal()},
                             Spec{"no_places", going_on, 4, 9, overlap, Layout::kDense, normal(), false},
                             Spec{"zero_tokens", {}, 4, 8, overlap, Layout::kDense, normal()}, Spec{"nan_gate", fresh, 4, 8, overlap, Layout::kDense, with(normal(), {{3, kNaN}})}})
      for (const DType state : {DType::f32, DType::bf16}) {
        const bool past = std::any_of(spec.sequences.begin(), spec.sequences.end(), [](const Sequence& s) { return s.past > 0; });
        if (!past && state != DType::f32) continue;
        cases.push_back({.op = "compress", .name = fmt::format("compress/{}/{}{}", dtype_name(state), spec.name, overlap ? "_overlap" : ""), .format = plain_weight_format(state), .body = [=](CaseRun& run) {
          const Batch& batch = run.batch(spec.sequences);
          const std::int64_t w = spec.overlap ? 2 * spec.d : spec.d, state_rows = spec.overlap ? 2 * spec.ratio : spec.ratio, slots = slots_of(spec.sequences);
          // Rows of the state that a window of this batch reaches back to; the others hold NaN.
          RowUse use{.seen = {}, .rows = slots * state_rows};
          for (const Sequence& s : batch.sequences)
            for (std::int64_t p = std::max<std::int64_t>(0, s.past / spec.ratio - (spec.overlap ? 1 : 0)) * spec.ratio; p < s.past; ++p) use.seen.insert(s.slot * state_rows + p % state_rows);
          const Tensor kv = run.input({batch.tokens, w}, normal(), spec.layout), gate = run.input({batch.tokens, w}, spec.gate, spec.layout);
          const Tensor ape = spec.places ? run.input(run.wide(), {spec.ratio, w}, normal()) : Tensor{};
          const Tensor state_kv = past ? run.input(state, {use.rows, w}, only_rows(use, w, normal()), spec.layout) : Tensor{};
          const Tensor state_gate = past ? run.input(state, {use.rows, w}, only_rows(use, w, normal()), spec.layout) : Tensor{};
          const std::int64_t rows = max_entries(batch, spec.ratio);
          run.ops.compress({.kv = kv, .gate = gate, .ape = ape, .state_kv = state_kv, .state_gate = state_gate, .state_rows = past ? state_rows : 0, .ratio = spec.ratio, .overlap = spec.overlap,
                            .out = run.output("out", {rows, spec.d}, spec.layout), .positions = run.output("positions", DType::i32, {rows}), .batch = &batch});
        }});
      }
  return cases;
}

}  // namespace fathom::test
