#include <algorithm>

#include "measure/calibrate_before.h"
#include "measure/calibrate_tables.h"

namespace fathom::measure {
namespace {

using namespace tensor;  // NOLINT: the vocabulary
using plan::Family;

class AttentionTables : Tables {
 public:
  explicit AttentionTables(const Tables& tables) : Tables(tables) {}

  Status run() {
    FATHOM_TRY_VOID(attention());
    return latents();
  }

 private:
  Status attention() {
    FATHOM_TRY_VOID(table(Family::kDecode, "", {grid_.streams, grid_.keys, grid_.groups}, [&](const Place& at) {
      const std::int64_t kv_heads = std::min<std::int64_t>(whole(at[0]), 8);
      return decode(whole(at[0]) / kv_heads, whole(at[1]), kv_heads * whole(at[2]), kv_heads);
    }));
    if (!grid_.one_heads.empty())
      FATHOM_TRY_VOID(
          table(Family::kDecode, std::string(plan::kOneSequence), {grid_.one_heads, grid_.keys, grid_.one_groups},
                [&](const Place& at) { return decode_one(whole(at[1]), whole(at[0]) * whole(at[2]), whole(at[0])); }));
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

  static KvSegment segment_of(std::int64_t rows_per_slot) {
    return {.kind = KvSegment::Kind::kCache,
            .k = {},
            .k_shared = {},
            .v = {},
            .rows_per_slot = rows_per_slot,
            .selected = {}};
  }
  static KvSegment latents_of(const Tensor& cache, std::int64_t rows_per_slot) {
    KvSegment segment = segment_of(rows_per_slot);
    segment.k = segment.v = cache.columns(0, kLatent).split_last(kLatent);
    segment.k_shared = cache.columns(kLatent, kRope);
    return segment;
  }
  void attend(const Tensor& q, const KvSegment& segment, const Tensor& out, const Batch& batch) {
    ops_.attention({.q = q,
                    .segments = {&segment, 1},
                    .scale = 0.0884,
                    .sink = {},
                    .out = out,
                    .lse = {},
                    .batch = &batch,
                    .only_products = true});
  }

  /// A token a sequence, with the rotations and cache rows that go before its attention: devices may do all at once.
  Result<Point> decode(std::int64_t sequences, std::int64_t keys, std::int64_t heads, std::int64_t kv_heads) {
    const auto tokens = rig_.tokens(sequences, 1, keys - 1);
    const HeadRows before(rig_, sequences, heads * kHeadDim, kv_heads * kHeadDim, kHeadDim);
    const Tensor out = rig_.tensor(DType::f32, {sequences, heads, kHeadDim});
    const double all = num(sequences) * num(keys), cached = all * 2.0 * num(kv_heads * 2 * kHeadDim);
    Point point{.bytes = cached + 4.0 * num(sequences) * num(heads) * num(2 * kHeadDim),
                .flops = 2.0 * all * num(heads) * num(2 * kHeadDim)};
    FATHOM_TRY(point.seconds, rig_.time(recorded(num(sequences)), cached, [&](int) {
      const Tensor k = rig_.cache({sequences * keys, kv_heads * kHeadDim}),
                   v = rig_.cache({sequences * keys, kv_heads * kHeadDim});
      before.make(ops_, k, v, tokens->batch, keys);
      KvSegment segment = segment_of(keys);
      segment.k = k.split_last(kHeadDim), segment.v = v.split_last(kHeadDim);
      attend(before.q.split_last(kHeadDim), segment, out, tokens->batch);
    }));
    return point;
  }

  /// The same of one sequence in a layer: behind the products that make q, k and v and before the output's, less those
  /// products alone, since devices may launch them together. A model's hidden size is about its heads' columns.
  Result<Point> decode_one(std::int64_t keys, std::int64_t heads, std::int64_t kv_heads) {
    constexpr std::int64_t kMostHidden = 8192;
    const auto tokens = rig_.tokens(1, 1, keys - 1);
    const HeadRows before(rig_, 1, heads * kHeadDim, kv_heads * kHeadDim, kHeadDim);
    const std::int64_t hidden = std::min(heads * kHeadDim, kMostHidden);
    const Tensor x = rig_.tensor(DType::f32, {1, hidden}), out = rig_.tensor(DType::f32, {1, heads * kHeadDim}),
                 residual = rig_.tensor(DType::f32, {1, hidden}), next = rig_.tensor(DType::f32, {1, hidden});
    const WeightFormat format = *parse_weight_format(grid_.formats.front());
    const double cached = num(keys) * 2.0 * num(kv_heads * 2 * kHeadDim),
                 weights = num(
                     static_cast<std::int64_t>(weight_bytes(format, (2 * heads + 2 * kv_heads) * kHeadDim, hidden)));
    Point point{.bytes = cached + 4.0 * num(heads) * num(2 * kHeadDim),
                .flops = 2.0 * num(keys) * num(heads) * num(2 * kHeadDim)};
    const auto product = [&](const Tensor& from, std::int64_t rows, const Tensor& to) {
      ops_.linear({.x = from, .weight = rig_.weight(format, rows, from.dim(1)), .bias = {}, .out = to});
    };
    const auto layer = [&](bool attends) {
      product(x, heads * kHeadDim, before.q);
      product(x, kv_heads * kHeadDim, before.k);
      product(x, kv_heads * kHeadDim, before.v);
      if (attends) {
        const Tensor k = rig_.cache({keys, kv_heads * kHeadDim}), v = rig_.cache({keys, kv_heads * kHeadDim});
        before.make(ops_, k, v, tokens->batch, keys);
        KvSegment segment = segment_of(keys);
        segment.k = k.split_last(kHeadDim), segment.v = v.split_last(kHeadDim);
        attend(before.q.split_last(kHeadDim), segment, out.split_last(kHeadDim), tokens->batch);
      }
      product(out, hidden, next);
      ops_.add({.a = next, .b = residual, .out = next});
    };
    FATHOM_TRY(point.seconds, rig_.time(true, weights + cached, [&](int) { layer(true); }));
    FATHOM_TRY(const double products, rig_.time(true, weights, [&](int) { layer(false); }));
    point.seconds = std::max(point.seconds - products, kLeastSeconds);
    return point;
  }

  /// The same of latents, with the product that absorbs q, less that product alone: it has a table of its own.
  Result<Point> decode_latents(std::int64_t sequences, std::int64_t keys, std::int64_t heads) {
    const auto tokens = rig_.tokens(sequences, 1, keys - 1);
    const LatentRows before(rig_, sequences, heads);
    const Tensor out = rig_.tensor(DType::f32, {sequences, heads, kLatent});
    const WeightFormat format = *parse_weight_format(grid_.formats.front());
    const double all = num(sequences) * num(keys), cached = all * 2.0 * num(kLatent + kRope);
    Point point{.bytes = cached + 4.0 * num(sequences) * num(heads) * num(2 * kLatent + kRope),
                .flops = 2.0 * all * num(heads) * num(2 * kLatent + kRope)};
    const bool replayed = recorded(num(sequences));
    FATHOM_TRY(point.seconds, rig_.time(replayed, cached, [&](int) {
      const Tensor cache = rig_.cache({sequences * keys, kLatent + kRope});
      before.make(ops_, cache, tokens->batch, keys, true);
      before.absorb(rig_, format);
      attend(before.absorbed, latents_of(cache, keys), out, tokens->batch);
    }));
    FATHOM_TRY(const double absorbing, rig_.time(replayed, 0, [&](int) { before.absorb(rig_, format); }));
    point.seconds = std::max(point.seconds - absorbing, kLeastSeconds);
    return point;
  }

  struct Shape4 {
    std::int64_t sequences = 1, tokens = 1, past = 0, heads = 1, kv_heads = 1;
    bool latent = false;
  };

  /// Many tokens of each sequence.
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
    FATHOM_TRY(point.seconds, rig_.time(false, cached, [&](int) {
      KvSegment segment = segment_of(keys);
      if (s.latent) {
        segment = latents_of(rig_.cache({s.sequences * keys, d + extra}), keys);
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
                          [&](const Place& at) { return decode_latents(whole(at[0]), whole(at[1]), whole(at[2])); }));
    return table(Family::kLatentChunk, "", {grid_.latent_tokens, grid_.latent_reaches, grid_.latent_chunk_heads},
                 [&](const Place& at) {
                   return attend({.sequences = 1,
                                  .tokens = whole(at[0]),
                                  .past = whole(at[0]) * (whole(at[1]) - 1),
                                  .heads = whole(at[2]),
                                  .latent = true});
                 });
  }
};

}  // namespace

Status time_attention(const Tables& tables) { return AttentionTables(tables).run(); }

}  // namespace fathom::measure
