// DeepSeek-V4: shared-KV attention over a sliding window and compressed entries (CSA with an indexer, HCA without),
// hyper-connections, hash-routed first layers. DeepSeek-V4 technical report §2; transformers 5 models/deepseek_v4.
#include <algorithm>
#include <cmath>

#include "model/architectures/registry.h"
#include "model/architectures/v4_tables.h"

namespace fathom::model {
namespace {
using tensor::KvSegment;
using tensor::Tensor;
using tensor::Value;

class DeepseekV4 final : public Architecture {
 public:
  DeepseekV4(const ModelSpec& spec, const Sharding& sharding) : Architecture(spec, sharding) {
    EntryMaker make(table_, spec_, sharding_);
    const std::int64_t last = sharding_.last_layer < 0 ? spec_.layers : sharding_.last_layer;
    if (sharding_.first_layer == 0)
      embed_ = add_v4_vocabulary(make, "embed", "model.embed_tokens", WeightClass::kEmbedding);
    for (std::int64_t i = sharding_.first_layer; i < last; ++i)
      layers_.push_back(add_v4_layer(make, cache_, static_cast<int>(i)));
    if (last == spec_.layers) {
      head_ids_ = add_v4_head(make);
      add_v4_extras(make);
    }
    constants_.push_back(inverse_frequencies(spec_.rope));
    constants_.push_back(inverse_frequencies(spec_.compress_rope));
  }

  int layer_kind(std::int64_t layer) const override {
    const LayerSpec& l = spec_.layer[static_cast<std::size_t>(layer)];
    return static_cast<int>(l.attention) * 2 + (l.hash_routed ? 1 : 0);
  }

  KvFigures kv_figures() const override { return v4_kv_figures(spec_); }

  Value embed(Pass& pass) const override {
    Value token = run_embed(pass, table_[embed_], embed_);  // [T, h]
    Value streams = allocate(pass.ops, {pass.batch.tokens, spec_.hyper_streams, spec_.hidden});
    pass.ops.expand_streams({.x = token, .out = streams});
    return streams;
  }

  // streams [T, c, h] -> [T, c, h]
  Value layer(Pass& pass, std::int64_t index, const Tensor& streams) const override {
    const V4LayerIds& ids = layers_[static_cast<std::size_t>(index - sharding_.first_layer)];
    Value middle;
    {
      Mixed mixed = mix(pass, ids.attention_hyper, streams);
      Value normed = rms_norm(pass.ops, mixed.collapsed, pass.weights[ids.attention_norm], spec_.norm_eps);
      if (!pass.ops.records()) mixed.collapsed.reset();
      Value out = run_attention(pass, ids, spec_.layer[static_cast<std::size_t>(index)], normed);
      middle = merge(pass, mixed, out, streams);
    }
    Mixed mixed = mix(pass, ids.ffn_hyper, middle);
    Value normed = rms_norm(pass.ops, mixed.collapsed, pass.weights[ids.ffn_norm], spec_.norm_eps);
    if (!pass.ops.records()) mixed.collapsed.reset();
    Value out = run_moe(pass, spec_, ids.moe, normed);
    return merge(pass, mixed, out, middle);
  }

  Value head(Pass& pass, const Tensor& streams) const override {
    tensor::Ops& ops = pass.ops;
    const std::int64_t c = spec_.hyper_streams, h = spec_.hidden;
    Value picked;
    if (pass.batch.output_rows.defined())
      picked = gather_rows(ops, streams.join_last(), pass.batch.output_rows);  // [outputs, c·h]
    const Tensor wanted = picked.defined() ? picked->split_last(h) : streams;
    FATHOM_CHECK(wanted.dim(1) == c);
    Value collapsed = allocate(ops, {wanted.dim(0), h});
    const V4HyperIds& hyper = head_ids_.hyper;
    ops.hyper_head({.streams = wanted,
                    .fn = pass.weights[hyper.fn],
                    .base = pass.weights[hyper.base].tensor(),
                    .scale = pass.weights[hyper.scale].tensor(),
                    .eps = spec_.hyper_eps,
                    .norm_eps = spec_.norm_eps,
                    .out = collapsed,
                    .base_parameter = pass.weights[hyper.base].parameter,
                    .scale_parameter = pass.weights[hyper.scale].parameter});
    picked.reset();
    Value normed = rms_norm(ops, collapsed, pass.weights[head_ids_.norm], spec_.norm_eps);
    return linear(ops, normed, pass.weights[head_ids_.head]);
  }

 private:
  struct Mixed {
    Value collapsed, post, comb;
  };

  Mixed mix(Pass& pass, const V4HyperIds& ids, const Tensor& streams) const {
    tensor::Ops& ops = pass.ops;
    const std::int64_t tokens = streams.dim(0), c = spec_.hyper_streams;
    Mixed mixed{allocate(ops, {tokens, spec_.hidden}), allocate(ops, {tokens, c}), allocate(ops, {tokens, c, c})};
    const tensor::Weight &base = pass.weights[ids.base], &scale = pass.weights[ids.scale];
    ops.hyper_mix({.streams = streams,
                   .fn = pass.weights[ids.fn],
                   .base = base.tensor(),
                   .scale = scale.tensor(),
                   .iterations = spec_.sinkhorn_iterations,
                   .eps = spec_.hyper_eps,
                   .norm_eps = spec_.norm_eps,
                   .collapsed = mixed.collapsed,
                   .post = mixed.post,
                   .comb = mixed.comb,
                   .base_parameter = base.parameter,
                   .scale_parameter = scale.parameter});
    return mixed;
  }

  Value merge(Pass& pass, const Mixed& mixed, const Tensor& x, const Tensor& streams) const {
    Value out = allocate(pass.ops, streams.shape);
    pass.ops.hyper_merge({.x = x, .streams = streams, .post = mixed.post, .comb = mixed.comb, .out = out});
    return out;
  }

  struct Entries {
    Value values;
    KvSegment segment;
  };

  // Pools this batch's tokens into entries of width d, normed and rotated at their own positions, and gives the segment
  // that holds all entries so far.
  Entries run_compressor(Pass& pass, const V4CompressorIds& ids, std::int64_t ratio, bool overlap, std::int64_t d,
                         const Tensor& x) const {
    tensor::Ops& ops = pass.ops;
    Value kv = linear(ops, x, pass.weights[ids.kv]);      // [T, w], w = d or 2d
    Value gate = linear(ops, x, pass.weights[ids.gate]);  // [T, w]
    const std::int64_t rows = tensor::max_entries(pass.batch, ratio);
    Value pooled = allocate(ops, {rows, d});
    Value positions = allocate(ops, DType::i32, {rows});
    tensor::CompressArgs args{.kv = kv,
                              .gate = gate,
                              .ape = pass.weights[ids.ape].tensor(),
                              .state_rows = overlap ? 2 * ratio : ratio,
                              .ratio = ratio,
                              .overlap = overlap,
                              .out = pooled,
                              .positions = positions,
                              .batch = &pass.batch,
                              .ape_parameter = pass.weights[ids.ape].parameter};
    if (pass.cache != nullptr) {
      args.state_kv = pass.cache->tensors[static_cast<std::size_t>(ids.state_kv)];
      args.state_gate = pass.cache->tensors[static_cast<std::size_t>(ids.state_gate)];
    }
    ops.compress(args);
    if (pass.cache != nullptr) {
      ops.cache_write({.src = kv,
                       .cache = args.state_kv,
                       .rows_per_slot = args.state_rows,
                       .rows = tensor::RowsOf::kRing,
                       .batch = &pass.batch});
      ops.cache_write({.src = gate,
                       .cache = args.state_gate,
                       .rows_per_slot = args.state_rows,
                       .rows = tensor::RowsOf::kRing,
                       .batch = &pass.batch});
    }
    if (!ops.records()) kv.reset(), gate.reset();
    Entries entries;
    entries.values = rms_norm(ops, pooled, pass.weights[ids.norm], spec_.norm_eps);
    const Tensor heads = entries.values->split_last(d);  // [rows, 1, d]
    tensor::RotaryPair at = rotary(ops, positions, constant_tensors_[1], rotary_scale(spec_.compress_rope));
    ops.rope({.x = heads, .cos = at.cos, .sin = at.sin, .first_dim = d - spec_.qk_rope_dim, .interleaved = true});
    if (pass.cache == nullptr) {
      entries.segment = {.kind = KvSegment::Kind::kFreshEntries, .k = heads, .v = heads, .ratio = ratio};
      return entries;
    }
    const std::int64_t slot_rows = pass.cache->rows_per_slot[static_cast<std::size_t>(ids.cache)];
    ops.cache_write({.src = entries.values,
                     .cache = cache_columns(pass, ids.cache),
                     .rows_per_slot = slot_rows,
                     .rows = tensor::RowsOf::kEntry,
                     .ratio = ratio,
                     .batch = &pass.batch});
    const Tensor cached = cache_rows(pass, ids.cache);
    entries.segment = {
        .kind = KvSegment::Kind::kEntries, .k = cached, .v = cached, .rows_per_slot = slot_rows, .ratio = ratio};
    return entries;
  }

  // The indexer's choice among the entries: [T, top_k].
  Value select(Pass& pass, const V4LayerIds& ids, std::int64_t ratio, const Tensor& x, const Tensor& q_latent) const {
    tensor::Ops& ops = pass.ops;
    const std::int64_t d = spec_.index_head_dim;
    Entries keys = run_compressor(pass, ids.index_compressor, ratio, true, d, x);
    Value q = linear(ops, q_latent, pass.weights[ids.index_q]);
    const Tensor qh = q->split_last(d);  // [T, Hi, d]
    ops.rope({.x = qh,
              .cos = pass.rotary[1].cos,
              .sin = pass.rotary[1].sin,
              .first_dim = d - spec_.qk_rope_dim,
              .interleaved = true});
    Value weights = linear(ops, x, pass.weights[ids.index_weights]);  // [T, Hi]
    const std::int64_t visible = pass.cache != nullptr ? keys.segment.rows_per_slot : keys.values->dim(0);
    Value selected =
        allocate(ops, DType::i32, {pass.batch.tokens, std::max<std::int64_t>(1, std::min(spec_.index_top_k, visible))});
    const double scale = 1.0 / std::sqrt(static_cast<double>(d)) / std::sqrt(static_cast<double>(spec_.index_heads));
    ops.index_select({.q = qh,
                      .weights = weights,
                      .keys = keys.segment,
                      .scale = scale,
                      .selected = selected,
                      .batch = &pass.batch});
    return selected;
  }

  Value run_attention(Pass& pass, const V4LayerIds& ids, const LayerSpec& layer, const Tensor& x) const {
    tensor::Ops& ops = pass.ops;
    const std::int64_t d = spec_.head_dim, first = d - spec_.qk_rope_dim;
    const tensor::RotaryPair& turn = pass.rotary[layer.attention == LayerAttention::kWindow ? 0 : 1];
    Value down = linear(ops, x, pass.weights[ids.q_a]);  // [T, Q]
    Value q_latent = rms_norm(ops, down, pass.weights[ids.q_norm], spec_.norm_eps);
    Value projected = linear(ops, q_latent, pass.weights[ids.q_b]);         // [T, H·d]
    Value q = rms_norm(ops, projected->split_last(d), {}, spec_.norm_eps);  // [T, H, d], no weight
    if (!ops.records()) down.reset(), projected.reset();
    ops.rope({.x = q, .cos = turn.cos, .sin = turn.sin, .first_dim = first, .interleaved = true});
    Value latent = linear(ops, x, pass.weights[ids.kv]);
    Value kv = rms_norm(ops, latent, pass.weights[ids.kv_norm], spec_.norm_eps);  // [T, d]: key and value at once
    const Tensor kv_heads = kv->split_last(d);                                    // [T, 1, d]
    ops.rope({.x = kv_heads, .cos = turn.cos, .sin = turn.sin, .first_dim = first, .interleaved = true});

    std::array<KvSegment, 3> segments;
    std::size_t count = 0;
    if (pass.cache != nullptr) {
      const Tensor ring = cache_rows(pass, ids.window_cache);
      segments[count++] = {.kind = KvSegment::Kind::kRingPast,
                           .k = ring,
                           .v = ring,
                           .rows_per_slot = pass.cache->rows_per_slot[static_cast<std::size_t>(ids.window_cache)],
                           .window = spec_.window};
    }
    segments[count++] = {.kind = KvSegment::Kind::kFresh, .k = kv_heads, .v = kv_heads, .window = spec_.window};
    Entries entries;
    Value selected;
    if (layer.compress_ratio > 0) {
      const bool sparse = layer.attention == LayerAttention::kCompressedSparse;
      entries = run_compressor(pass, ids.compressor, layer.compress_ratio, sparse, d, x);
      if (sparse) selected = select(pass, ids, layer.compress_ratio, x, q_latent);
      segments[count] = entries.segment;
      segments[count++].selected = selected.tensor();
    }
    Value o = attention(ops, q, std::span(segments.data(), count), d, 1.0 / std::sqrt(static_cast<double>(d)),
                        pass.weights[ids.sink], pass.batch);  // [T, H, d]
    if (pass.cache != nullptr)
      ops.cache_write({.src = kv,
                       .cache = cache_columns(pass, ids.window_cache),
                       .rows_per_slot = pass.cache->rows_per_slot[static_cast<std::size_t>(ids.window_cache)],
                       .rows = tensor::RowsOf::kRing,
                       .batch = &pass.batch});
    if (ops.records()) {  // backward needs the attention's own output: turn a copy
      Value copy = allocate(ops, o->shape);
      ops.copy({.x = o, .out = copy});
      o = std::move(copy);
    } else {
      q.reset();
    }
    ops.rope({.x = o, .cos = turn.cos, .sin = turn.sin, .first_dim = first, .interleaved = true, .inverse = true});
    const std::int64_t groups = o->dim(1) * d / pass.weights[ids.o_a].cols;  // this rank's output groups
    Value low = allocate(ops, {x.dim(0), groups, spec_.output_lora_rank});
    ops.grouped_linear({.x = o->join_last().split_last(pass.weights[ids.o_a].cols),
                        .weight = pass.weights[ids.o_a],
                        .group_rows = spec_.output_lora_rank,
                        .row_offset = 0,
                        .rows = spec_.output_lora_rank,
                        .transposed = false,
                        .out = low});
    o.reset();
    Value out = linear(ops, low->join_last(), pass.weights[ids.o_b]);  // [T, h]
    pass.comm.all_reduce(tensor::Group::kTensor, out);
    return out;
  }

  WeightId embed_ = -1;
  V4HeadIds head_ids_;
  std::vector<V4LayerIds> layers_;
};

}  // namespace

Result<std::unique_ptr<Architecture>> make_deepseek_v4(const ModelSpec& spec, const Sharding& sharding) {
  FATHOM_TRY_VOID(check_divides("o_groups", spec.output_groups, sharding.tp));
  return std::make_unique<DeepseekV4>(spec, sharding);
}

}  // namespace fathom::model
