// Cases of attention. Rows of a cache that no token may see hold NaN.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "backends/op_case_segments.h"
#include "support/numbers.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary
using Kind = KvSegment::Kind;
constexpr DType kCacheTypes[] = {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::i8, DType::f64};

struct AttentionSpec {
  std::string name;
  Chunks sequences;
  std::int64_t heads = 1, kv_heads = 1, dk = 8, dr = 0, dv = 8;
  std::vector<SegmentSpec> segments;
  bool value_is_key = false, sink = false, lse = false;
  Layout layout = Layout::kDense;
  Fill q = normal(), kv = normal();
  double magnitude = 1;
  DType rounds_to = DType::f32;
};

OpCase attention_case(const AttentionSpec& spec, DType cache) {
  return {.op = "attention",
          .name = fmt::format("attention/{}{}/{}", dtype_name(cache),
                              spec.rounds_to != DType::f32 ? fmt::format("_to_{}", dtype_name(spec.rounds_to)) : "",
                              spec.name),
          .format = cache_format(spec.rounds_to != DType::f32 ? spec.rounds_to : cache),
          .exact = false,
          .magnitude = spec.magnitude,
          .body = [=](CaseRun& run) {
            const Batch& batch = run.batch(spec.sequences);
            const Tensor q = run.input({batch.tokens, spec.heads, spec.dk + spec.dr}, spec.q, spec.layout);
            std::vector<KvSegment> segments;
            for (const SegmentSpec& part : spec.segments) {
              const RowUse use = rows_used(part, batch, slots_of(spec.sequences));
              const DType dtype =
                  part.kind == Kind::kFresh || part.kind == Kind::kFreshEntries ? run.activation() : cache;
              KvSegment segment{.kind = part.kind,
                                .k = {},
                                .k_shared = {},
                                .v = {},
                                .rows_per_slot = part.rows_per_slot,
                                .window = part.window,
                                .ratio = part.ratio,
                                .selected = {}};
              segment.k = run.input(dtype, {use.rows, spec.kv_heads, spec.dk},
                                    only_rows(use, spec.kv_heads * spec.dk, spec.kv), spec.layout);
              if (spec.dr > 0)
                segment.k_shared = run.input(dtype, {use.rows, spec.dr}, only_rows(use, spec.dr, spec.kv), spec.layout);
              segment.v = spec.value_is_key ? segment.k.columns(0, spec.dv)
                                            : run.input(dtype, {use.rows, spec.kv_heads, spec.dv},
                                                        only_rows(use, spec.kv_heads * spec.dv, spec.kv), spec.layout);
              if (part.selected > 0) segment.selected = make_selected(run, part, batch);
              segments.push_back(segment);
            }
            const Tensor sink = spec.sink ? run.input(run.wide(), {spec.heads}, normal(2.0)) : Tensor{};
            const Tensor lse = spec.lse ? run.output("lse", run.wide(), {batch.tokens, spec.heads}) : Tensor{};
            const Tensor out = run.output("out", {batch.tokens, spec.heads, spec.dv}, spec.layout);
            run.ops.attention({.q = q,
                               .segments = segments,
                               .scale = 1.0 / std::sqrt(static_cast<double>(spec.dk + spec.dr)),
                               .sink = sink,
                               .out = out,
                               .lse = lse,
                               .batch = &batch,
                               .rounds_to = spec.rounds_to});
          }};
}

std::vector<AttentionSpec> cached_specs() {
  const Chunks decode = chunks({{3, 1, 0}, {0, 1, 5}, {1, 1, 31}, {4, 1, 64}, {2, 1, 100}}),
               mixed = chunks({{1, 7, 0}, {0, 1, 40}, {2, 5, 13}});
  const SegmentSpec cache{.kind = Kind::kCache, .rows_per_slot = 101}, big{.kind = Kind::kCache, .rows_per_slot = 1601};
  const SegmentSpec ring{.kind = Kind::kRingPast, .rows_per_slot = 8, .window = 8},
      wide_ring{.kind = Kind::kRingPast, .rows_per_slot = 11, .window = 8};
  const SegmentSpec window{.kind = Kind::kFresh, .window = 8};
  const auto entries = [](std::int64_t ratio, std::int64_t selected) {
    return SegmentSpec{.kind = Kind::kEntries, .rows_per_slot = 128 / ratio + 1, .ratio = ratio, .selected = selected};
  };
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
      {"selected",
       mixed,
       4,
       1,
       24,
       8,
       24,
       {{.kind = Kind::kCache, .rows_per_slot = 64, .selected = 4}},
       true,
       false,
       true},
      {"selected_more_than_seen",
       mixed,
       4,
       2,
       16,
       0,
       16,
       {{.kind = Kind::kCache, .rows_per_slot = 64, .selected = 50}}},
      {"ring_fresh",
       chunks({{0, 1, 0}, {1, 1, 3}, {2, 1, 8}, {3, 1, 20}, {4, 1, 25}}),
       4,
       1,
       16,
       0,
       16,
       {ring, window},
       true,
       true,
       true},
      {"ring_fresh_chunks",
       chunks({{0, 12, 0}, {1, 5, 3}, {2, 9, 20}, {3, 1, 7}, {4, 8, 8}}),
       4,
       1,
       17,
       0,
       17,
       {wide_ring, window},
       true,
       true,
       true,
       Layout::kStrided},
      {"ring_fresh_entries",
       chunks({{0, 1, 0}, {1, 1, 3}, {2, 1, 15}, {3, 6, 25}, {4, 9, 111}}),
       4,
       1,
       32,
       0,
       32,
       {ring, window, entries(4, 0)},
       true,
       true,
       true},
      {"ring_fresh_entries_selected",
       chunks({{0, 1, 0}, {1, 3, 2}, {2, 1, 64}, {3, 6, 25}}),
       8,
       1,
       24,
       0,
       24,
       {wide_ring, window, entries(4, 5)},
       true,
       true,
       true},
      {"ring_fresh_entries_of_16",
       chunks({{0, 20, 0}, {1, 17, 15}, {2, 1, 127}}),
       2,
       1,
       12,
       0,
       12,
       {ring, window, entries(16, 0)},
       true,
       true,
       false},
  };
}

// Shapes of real models, for what matrix units do with keys of 16 and 8 bits: ragged tiles, several sequences at
// different places.
std::vector<AttentionSpec> wide_specs() {
  const Chunks ragged = chunks({{0, 130, 70}, {3, 1, 40}, {1, 64, 0}, {2, 33, 191}}),
               one = chunks({{2, 1, 300}, {0, 1, 0}, {1, 1, 63}, {3, 1, 64}});
  const SegmentSpec cache{.kind = Kind::kCache, .rows_per_slot = 301};
  return {
      {"wide_mha_d128", ragged, 2, 2, 128, 0, 128, {cache}, false, false, true},
      {"wide_gqa_d64", ragged, 6, 2, 64, 0, 64, {cache}, false, true, true},
      {"wide_gqa_of_7_d128", chunks({{0, 20, 13}, {1, 9, 0}}), 14, 2, 128, 0, 128, {cache}},
      {"wide_mqa_d40", ragged, 3, 1, 40, 0, 24, {cache}, false, false, true},
      {"wide_expanded_d192", ragged, 2, 2, 128, 64, 128, {cache}, false, false, true},
      {"wide_long",
       chunks({{0, 3, 1500}}),
       2,
       1,
       64,
       0,
       64,
       {{.kind = Kind::kCache, .rows_per_slot = 1600}},
       false,
       false,
       true},
      {"wide_latent_16", one, 16, 1, 512, 64, 512, {cache}, true, false, true},
      {"wide_latent_20", chunks({{1, 1, 63}, {2, 1, 129}}), 20, 1, 512, 64, 512, {cache}, true, true, true},
      {"wide_latent_64", chunks({{1, 1, 150}, {0, 1, 0}}), 64, 1, 512, 64, 512, {cache}, true, false, true},
      {"wide_latent_chunks_16",
       chunks({{0, 6, 60}, {3, 1, 40}, {1, 5, 0}, {2, 2, 191}}),
       16,
       1,
       512,
       64,
       512,
       {cache},
       true,
       false,
       true},
      {"wide_latent_chunks_128", chunks({{0, 2, 70}, {1, 1, 0}}), 128, 1, 512, 64, 512, {cache}, true},
      {"wide_latent_small", chunks({{0, 1, 100}, {1, 1, 7}}), 16, 1, 96, 32, 96, {cache}, true, false, true},
  };
}

std::vector<AttentionSpec> fresh_rounded_specs() {
  const Chunks three = chunks({{0, 150, 0}, {1, 1, 0}, {2, 65, 0}});
  const SegmentSpec fresh{.kind = Kind::kFresh}, window{.kind = Kind::kFresh, .window = 20};
  std::vector<AttentionSpec> specs = {
      {"fresh_wide_d192", three, 2, 2, 128, 64, 128, {fresh}, false, false, true},
      {"fresh_wide_gqa_d128", three, 4, 2, 128, 0, 128, {fresh}, false, true, true, Layout::kStrided},
      {"fresh_wide_window", three, 3, 1, 64, 0, 64, {window}, true, false, true},
      {"fresh_wide_misaligned", three, 2, 1, 32, 0, 32, {fresh}, false, false, true, Layout::kMisaligned},
  };
  std::vector<AttentionSpec> all;
  for (const DType type : {DType::f16, DType::bf16})
    for (AttentionSpec& spec : specs) {
      spec.rounds_to = type;
      all.push_back(spec);
    }
  return all;
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
      {"fresh_and_entries",
       chunks({{0, 21, 0}, {1, 3, 0}, {2, 8, 0}}),
       4,
       1,
       16,
       0,
       16,
       {{.kind = Kind::kFresh, .window = 5}, {.kind = Kind::kFreshEntries, .ratio = 4}},
       true,
       true,
       true},
      {"fresh_and_entries_selected",
       chunks({{0, 30, 0}, {1, 7, 0}}),
       4,
       1,
       20,
       0,
       20,
       {{.kind = Kind::kFresh, .window = 5}, {.kind = Kind::kFreshEntries, .ratio = 4, .selected = 2}},
       true,
       true,
       true,
       Layout::kStrided},
      {"zero_tokens", {}, 2, 1, 8, 0, 8, {fresh}, false, false, true},
      {"uniform", one, 2, 2, 16, 0, 16, {fresh}, false, false, true, Layout::kDense, constant(0.0)},
      {"sharp", one, 2, 2, 16, 0, 16, {fresh}, false, false, true, Layout::kDense, normal(300.0), normal(), 100.0},
      {"huge_scores",
       one,
       2,
       2,
       16,
       0,
       16,
       {fresh},
       false,
       false,
       false,
       Layout::kDense,
       integers(1),
       with(constant(1e4), {{40, -1e4}, {200, 3e4}}),
       1e4},
      {"nan_query",
       one,
       2,
       2,
       8,
       0,
       8,
       {fresh},
       false,
       false,
       true,
       Layout::kDense,
       with(normal(), {{5 * 16 + 3, kNaN}})},
      {"nan_key_of_last",
       one,
       2,
       2,
       8,
       0,
       8,
       {fresh},
       false,
       false,
       true,
       Layout::kDense,
       normal(),
       with(normal(), {{16 * 16 + 11, kNaN}})},
  };
}

}  // namespace

std::vector<OpCase> attention_cases() {
  std::vector<OpCase> cases;
  for (const DType dtype : kCacheTypes)
    for (const AttentionSpec& spec : cached_specs()) cases.push_back(attention_case(spec, dtype));
  for (const DType dtype : {DType::f16, DType::bf16, DType::f8e4m3, DType::i8})
    for (const AttentionSpec& spec : wide_specs()) cases.push_back(attention_case(spec, dtype));
  for (const AttentionSpec& spec : fresh_rounded_specs()) cases.push_back(attention_case(spec, DType::f32));
  for (const AttentionSpec& spec : fresh_specs()) cases.push_back(attention_case(spec, DType::f32));
  return cases;
}

}  // namespace fathom::test
