// DeepSeek-V4.1-Flash (arXiv 2609.19969): V4's block with compressed KV owned by few layers and read by all after them
// (CSA2), Engram n-gram memory, DSpark. Planned exactly in size; not run yet (the Engram hashes and the single-pass
// mixing are not published in a form that we could check numbers against), so `runnable` says no.
#include <algorithm>
#include <array>
#include <cmath>

#include "model/architectures/registry.h"
#include "model/architectures/v4_tables.h"

namespace fathom::model {
namespace {
using tensor::KvSegment;
using tensor::Tensor;
using tensor::Value;

struct SourceIds {
  WeightId kv = -1, gate = -1, norm = -1, index_key = -1, index_norm = -1;
  int cache = -1, index_cache = -1;
};
struct EngramIds {
  WeightId table = -1, kv = -1, q = -1, k = -1;
  std::int64_t layer = -1;
};

class DeepseekV41 final : public Architecture {
 public:
  DeepseekV41(const ModelSpec& spec, const Sharding& sharding) : Architecture(spec, sharding) {
    EntryMaker make(table_, spec_, sharding_);
    const std::int64_t last = sharding_.last_layer < 0 ? spec_.layers : sharding_.last_layer;
    if (sharding_.first_layer == 0)
      embed_ = add_v4_vocabulary(make, "embed", "model.embed_tokens", WeightClass::kEmbedding);
    for (std::int64_t i = sharding_.first_layer; i < last; ++i) add_layer(make, i);
    if (last == spec_.layers) {
      head_ = add_v4_vocabulary(make, "head", "model.head", WeightClass::kHead);
      norm_ = make.vector("norm.weight", WeightClass::kNorm, -1, spec_.hidden, spec_.plain_format);
    }
    for (std::size_t i = 0; i < spec_.engram.rows.size(); ++i)
      if (spec_.engram.layers[i] >= sharding_.first_layer && spec_.engram.layers[i] < last) add_engram(make, i);
    if (last == spec_.layers) add_v4_extras(make);
    constants_.push_back(inverse_frequencies(spec_.rope));
    constants_.push_back(inverse_frequencies(spec_.compress_rope));
  }

  bool runnable() const override { return false; }

  int layer_kind(std::int64_t layer) const override {
    const bool window = spec_.layer[static_cast<std::size_t>(layer)].attention == LayerAttention::kWindow;
    const bool engram = contains(spec_.engram.layers, layer);
    const int source = contains(spec_.kv_source_layers, layer)
                           ? static_cast<int>(spec_.layer[static_cast<std::size_t>(layer)].compress_ratio)
                           : 0;
    return (window ? 1 : 0) + (engram ? 2 : 0) + (contains(spec_.index_source_layers, layer) ? 4 : 0) + 8 * source;
  }

  KvFigures kv_figures() const override {
    const auto d = static_cast<double>(spec_.head_dim), di = static_cast<double>(spec_.index_head_dim),
               window = static_cast<double>(spec_.window);
    double entries = 0;
    for (const std::int64_t i : spec_.kv_source_layers)
      entries += 1.0 / static_cast<double>(spec_.layer[static_cast<std::size_t>(i)].compress_ratio);
    return {.per_token = {{"nvfp4_mxfp4index", entries * ((d / 2 + d / 16) + (di / 2 + di / 32))},
                          {"bf16", entries * (2 * d + 2 * di)}},
            .fixed = {{"window_bytes_fp8", static_cast<double>(spec_.layers) * window * (d + d / 32)},
                      {"window_bytes_dspark_fp8", static_cast<double>(spec_.dspark.blocks) * window * (d + d / 32)}}};
  }

  Value embed(Pass& pass) const override {
    Value token = run_embed(pass, table_[embed_], embed_);
    Value streams = allocate(pass.ops, {pass.batch.tokens, spec_.hyper_streams, spec_.hidden});
    pass.ops.expand_streams({.x = token, .out = streams});
    return streams;
  }

  Value layer(Pass& pass, std::int64_t index, const Tensor& streams) const override {
    const V4LayerIds& ids = layers_[static_cast<std::size_t>(index - sharding_.first_layer)];
    Value remembered;
    for (const EngramIds& engram : engrams_)
      if (engram.layer == index) remembered = run_engram(pass, engram, streams);
    const Tensor& input = remembered.defined() ? remembered.tensor() : streams;
    Value middle = sublayer(pass, ids.attention_hyper, ids.attention_norm, input,
                            [&](const Tensor& x) { return run_attention(pass, ids, index, x); });
    return sublayer(pass, ids.ffn_hyper, ids.ffn_norm, middle,
                    [&](const Tensor& x) { return run_moe(pass, spec_, ids.moe, x); });
  }

  Value head(Pass& pass, const Tensor& streams) const override {
    const Tensor flat = streams.join_last();
    Value picked;
    if (pass.batch.output_rows.defined()) picked = gather_rows(pass.ops, flat, pass.batch.output_rows);
    const Tensor wanted = (picked.defined() ? picked.tensor() : flat).columns(0, spec_.hidden);
    Value normed = rms_norm(pass.ops, wanted, pass.weights[norm_], spec_.norm_eps);
    return linear(pass.ops, normed, pass.weights[head_]);
  }

 private:
  static bool contains(const std::vector<std::int64_t>& list, std::int64_t value) {
    return std::find(list.begin(), list.end(), value) != list.end();
  }

  void add_layer(EntryMaker& make, std::int64_t index) {
    const int l = static_cast<int>(index);
    const std::string p = "layers." + std::to_string(index) + ".";
    const LayerSpec& spec = spec_.layer[static_cast<std::size_t>(index)];
    V4LayerIds ids = add_v4_block(make, {.prefix = p, .layer = l, .experts = spec_.routing.experts, .v41 = true});
    ids.window_cache =
        add_cache({.layer = l, .rows = tensor::RowsOf::kRing, .width = spec_.head_dim, .ring_rows = spec_.window});
    SourceIds source;
    if (contains(spec_.kv_source_layers, index)) {
      const auto cls = WeightClass::kCompressor;
      source.kv =
          make.matrix(p + "attn.compressor.wkv.weight", cls, l, spec_.head_dim, spec_.hidden, spec_.plain_format);
      source.norm = make.vector(p + "attn.compressor.norm.weight", cls, l, spec_.head_dim, spec_.plain_format);
      if (spec.compress_ratio > 1)
        source.gate =
            make.matrix(p + "attn.compressor.wgate.weight", cls, l, spec_.head_dim, spec_.hidden, spec_.plain_format);
      source.index_key = make.matrix(p + "attn.indexer.wk.weight", WeightClass::kIndexer, l, spec_.index_head_dim,
                                     spec_.head_dim, spec_.plain_format);
      source.index_norm = make.vector(p + "attn.indexer.k_norm.weight", WeightClass::kIndexer, l, spec_.index_head_dim,
                                      spec_.plain_format);
      source.cache = add_cache(
          {.layer = l, .rows = tensor::RowsOf::kEntry, .width = spec_.head_dim, .ratio = spec.compress_ratio});
      source.index_cache = add_cache({.layer = l,
                                      .rows = tensor::RowsOf::kEntry,
                                      .width = spec_.index_head_dim,
                                      .ratio = spec.compress_ratio,
                                      .index = true});
    }
    if (contains(spec_.index_source_layers, index)) {
      ids.index_q = make.matrix(p + "attn.indexer.wq_b.weight", WeightClass::kIndexer, l,
                                spec_.index_heads * spec_.index_head_dim, spec_.q_lora_rank, spec_.linear_format);
      ids.index_weights = make.matrix(p + "attn.indexer.weights_proj.weight", WeightClass::kIndexer, l,
                                      spec_.index_heads, spec_.hidden, spec_.plain_format);
    }
    sources_.push_back(source);
    layers_.push_back(ids);
  }

  int add_cache(CacheTensor t) {
    cache_.tensors.push_back(t);
    return static_cast<int>(cache_.tensors.size() - 1);
  }

  void add_engram(EntryMaker& make, std::size_t i) {
    const EngramSpec& e = spec_.engram;
    const int l = static_cast<int>(e.layers[i]);
    const std::string p = "engram." + std::to_string(i) + ".";
    const std::int64_t columns = (e.max_ngram - 1) * e.heads * e.head_dim;
    EngramIds ids{.layer = e.layers[i]};
    make.set_part(WeightPart::kEngram);
    ids.table = make.matrix(p + "embed.weight", WeightClass::kEngramTable, l, e.rows[i], e.head_dim,
                            tensor::WeightFormat::fp8_row32_e8m0);
    make.set_part(WeightPart::kMain);
    ids.kv = make.matrix(p + "wkv.weight", WeightClass::kEngramProjection, l, (spec_.hyper_streams + 1) * spec_.hidden,
                         columns, spec_.linear_format);
    ids.q = make.matrix(p + "q_weight", WeightClass::kEngramProjection, l, spec_.hyper_streams, spec_.hidden,
                        spec_.plain_format);
    ids.k = make.matrix(p + "k_weight", WeightClass::kEngramProjection, l, spec_.hyper_streams, spec_.hidden,
                        spec_.plain_format);
    engrams_.push_back(ids);
  }

  template <class Body>
  Value sublayer(Pass& pass, const V4HyperIds& ids, WeightId norm, const Tensor& streams, const Body& body) const {
    tensor::Ops& ops = pass.ops;
    const std::int64_t tokens = streams.dim(0), c = spec_.hyper_streams;
    Value collapsed = allocate(ops, {tokens, spec_.hidden}), post = allocate(ops, {tokens, c}),
          comb = allocate(ops, {tokens, c, c});
    ops.hyper_mix({.streams = streams,
                   .fn = pass.weights[ids.fn],
                   .base = pass.weights[ids.base].tensor(),
                   .scale = pass.weights[ids.scale].tensor(),
                   .iterations = spec_.sinkhorn_iterations,
                   .eps = spec_.hyper_eps,
                   .norm_eps = spec_.norm_eps,
                   .collapsed = collapsed,
                   .post = post,
                   .comb = comb,
                   .base_parameter = pass.weights[ids.base].parameter,
                   .scale_parameter = pass.weights[ids.scale].parameter});
    Value normed = rms_norm(ops, collapsed, pass.weights[norm], spec_.norm_eps);
    Value x = body(normed);
    Value out = allocate(ops, streams.shape);
    ops.hyper_merge({.x = x, .streams = streams, .post = post, .comb = comb, .out = out});
    return out;
  }

  // 24 table rows a token, projected to one key a stream and a value that is added to every stream.
  Value run_engram(Pass& pass, const EngramIds& ids, const Tensor& streams) const {
    tensor::Ops& ops = pass.ops;
    const EngramSpec& e = spec_.engram;
    const std::int64_t rows = (e.max_ngram - 1) * e.heads, c = spec_.hyper_streams, h = spec_.hidden;
    Value addresses = allocate(ops, DType::i32, {pass.batch.tokens * rows});
    Value looked_up = tensor::embed(ops, addresses, pass.weights[ids.table]);  // [T·24, 256]
    Tensor joined = looked_up.tensor();
    joined.shape = {pass.batch.tokens, rows * e.head_dim};
    joined.strides = {rows * e.head_dim, 1, 0, 0};
    Value projected = linear(ops, joined, pass.weights[ids.kv]);                                 // [T, (c + 1)·h]
    Value keys = rms_norm(ops, projected->columns(0, c * h).split_last(h), {}, spec_.norm_eps);  // [T, c, h]
    Value out = allocate(ops, streams.shape);
    ops.add({.a = streams, .b = keys, .out = out});
    return out;
  }

  // The nearest earlier layer that owns compressed KV.
  std::int64_t source_of(std::int64_t index) const {
    std::int64_t found = -1;
    for (const std::int64_t i : spec_.kv_source_layers)
      if (i <= index) found = std::max(found, i);
    return found;
  }

  void run_source(Pass& pass, const SourceIds& ids, std::int64_t ratio, const Tensor& x) const {
    tensor::Ops& ops = pass.ops;
    const std::int64_t d = spec_.head_dim, rows = tensor::max_entries(pass.batch, ratio);
    Value kv = linear(ops, x, pass.weights[ids.kv]);
    Value pooled;
    if (ids.gate >= 0) {
      Value gate = linear(ops, x, pass.weights[ids.gate]);
      pooled = allocate(ops, {rows, d});
      Value positions = allocate(ops, DType::i32, {rows});
      ops.compress({.kv = kv,
                    .gate = gate,
                    .state_rows = ratio,
                    .ratio = ratio,
                    .overlap = false,
                    .out = pooled,
                    .positions = positions,
                    .batch = &pass.batch});
    }
    Value entry =
        rms_norm(ops, pooled.defined() ? pooled.tensor() : kv.tensor(), pass.weights[ids.norm], spec_.norm_eps);
    Value projected = linear(ops, entry, pass.weights[ids.index_key]);
    Value key = rms_norm(ops, projected, pass.weights[ids.index_norm], spec_.norm_eps);
    if (pass.cache == nullptr) return;
    const auto write = [&](const Tensor& src, int cache) {
      ops.cache_write({.src = src,
                       .cache = cache_columns(pass, cache),
                       .rows_per_slot = pass.cache->rows_per_slot[static_cast<std::size_t>(cache)],
                       .rows = tensor::RowsOf::kEntry,
                       .ratio = ratio,
                       .batch = &pass.batch});
    };
    write(entry, ids.cache);
    write(key, ids.index_cache);
  }

  Value run_attention(Pass& pass, const V4LayerIds& ids, std::int64_t index, const Tensor& x) const {
    tensor::Ops& ops = pass.ops;
    const std::int64_t d = spec_.head_dim, first = d - spec_.qk_rope_dim;
    const LayerSpec& layer = spec_.layer[static_cast<std::size_t>(index)];
    const tensor::RotaryPair& turn = pass.rotary[layer.attention == LayerAttention::kWindow ? 0 : 1];
    Value down = linear(ops, x, pass.weights[ids.q_a]);
    Value q_latent = rms_norm(ops, down, pass.weights[ids.q_norm], spec_.norm_eps);
    Value projected = linear(ops, q_latent, pass.weights[ids.q_b]);
    Value q = rms_norm(ops, projected->split_last(d), {}, spec_.norm_eps);
    ops.rope({.x = q, .cos = turn.cos, .sin = turn.sin, .first_dim = first, .interleaved = true});
    Value latent = linear(ops, x, pass.weights[ids.kv]);
    Value kv = rms_norm(ops, latent, pass.weights[ids.kv_norm], spec_.norm_eps);
    const Tensor heads = kv->split_last(d);
    ops.rope({.x = heads, .cos = turn.cos, .sin = turn.sin, .first_dim = first, .interleaved = true});
    std::array<KvSegment, 3> segments;
    std::size_t count = 0;
    if (pass.cache != nullptr) {
      const Tensor ring = cache_rows(pass, ids.window_cache);
      segments[count++] = {.kind = KvSegment::Kind::kRingPast,
                           .k = ring,
                           .v = ring,
                           .rows_per_slot = spec_.window,
                           .window = spec_.window};
    }
    segments[count++] = {.kind = KvSegment::Kind::kFresh, .k = heads, .v = heads, .window = spec_.window};
    if (layer.attention != LayerAttention::kWindow && pass.cache != nullptr)
      segments[count++] = entries(pass, ids, index, x, q_latent);
    Value o = attention(ops, q, std::span(segments.data(), count), d, 1.0 / std::sqrt(static_cast<double>(d)),
                        pass.weights[ids.sink], pass.batch);
    if (pass.cache != nullptr)
      ops.cache_write({.src = kv,
                       .cache = cache_columns(pass, ids.window_cache),
                       .rows_per_slot = spec_.window,
                       .rows = tensor::RowsOf::kRing,
                       .batch = &pass.batch});
    Value turned = allocate(ops, o->shape);
    ops.copy({.x = o, .out = turned});
    ops.rope({.x = turned, .cos = turn.cos, .sin = turn.sin, .first_dim = first, .interleaved = true, .inverse = true});
    const std::int64_t groups = turned->dim(1) * d / pass.weights[ids.o_a].cols;
    Value low = allocate(ops, {x.dim(0), groups, spec_.output_lora_rank});
    ops.grouped_linear({.x = turned->join_last().split_last(pass.weights[ids.o_a].cols),
                        .weight = pass.weights[ids.o_a],
                        .group_rows = spec_.output_lora_rank,
                        .row_offset = 0,
                        .rows = spec_.output_lora_rank,
                        .transposed = false,
                        .out = low});
    Value out = linear(ops, low->join_last(), pass.weights[ids.o_b]);
    pass.comm.all_reduce(tensor::Group::kTensor, out);
    return out;
  }

  // The compressed entries that this layer reads: its own or an earlier layer's, chosen here or reused.
  KvSegment entries(Pass& pass, const V4LayerIds& ids, std::int64_t index, const Tensor& x,
                    const Tensor& q_latent) const {
    tensor::Ops& ops = pass.ops;
    const std::int64_t owner = source_of(index);
    FATHOM_CHECK(owner >= sharding_.first_layer,
                 "a pipeline stage that begins between an owner of compressed KV and its readers");
    const SourceIds& source = sources_[static_cast<std::size_t>(owner - sharding_.first_layer)];
    const std::int64_t ratio = spec_.layer[static_cast<std::size_t>(owner)].compress_ratio, d = spec_.index_head_dim;
    if (owner == index) run_source(pass, source, ratio, x);
    const std::int64_t rows = pass.cache->rows_per_slot[static_cast<std::size_t>(source.cache)];
    if (ids.index_q >= 0 || pass.shared.empty()) {
      Value selected =
          allocate(ops, DType::i32, {pass.batch.tokens, std::max<std::int64_t>(1, std::min(spec_.index_top_k, rows))});
      if (ids.index_q >= 0) {
        Value q = linear(ops, q_latent, pass.weights[ids.index_q]);
        Value weights = linear(ops, x, pass.weights[ids.index_weights]);
        const Tensor keys = cache_rows(pass, source.index_cache);
        ops.index_select(
            {.q = q->split_last(d),
             .weights = weights,
             .keys = {.kind = KvSegment::Kind::kEntries, .k = keys, .v = keys, .rows_per_slot = rows, .ratio = ratio},
             .scale = 1.0 / std::sqrt(static_cast<double>(d * spec_.index_heads)),
             .selected = selected,
             .batch = &pass.batch});
      }
      pass.shared.clear();
      pass.shared.push_back(std::move(selected));
    }
    const Tensor cached = cache_rows(pass, source.cache);
    return {.kind = KvSegment::Kind::kEntries,
            .k = cached,
            .v = cached,
            .rows_per_slot = rows,
            .ratio = ratio,
            .selected = pass.shared[0].tensor()};
  }

  WeightId embed_ = -1, head_ = -1, norm_ = -1;
  std::vector<V4LayerIds> layers_;
  std::vector<SourceIds> sources_;
  std::vector<EngramIds> engrams_;
};

}  // namespace

void parse_deepseek_v41(ConfigReader& reader, ModelSpec& spec) {
  const Json* text = reader.object_or_null("text_config");
  reader.require(text != nullptr, "model.config_missing", {{"what", reader.what()}, {"key", "text_config"}});
  if (text == nullptr) return;
  ConfigReader inner(*text, reader.what() + ": text_config");
  inner.ignore({"model_type"});
  read_v4_common(inner, spec);
  spec.rope = {.theta = inner.number_or("rope_theta", 10000, 1, 1e12), .dims = spec.qk_rope_dim};
  const double compress_theta = inner.number_or("compress_rope_theta", 160000, 1, 1e12);
  const Json* scaling = inner.object_or_null("rope_scaling");
  spec.compress_rope = {.theta = compress_theta, .dims = spec.qk_rope_dim};
  if (scaling != nullptr) spec.compress_rope = read_rope_object(inner, *scaling, spec.qk_rope_dim, compress_theta);
  const std::vector<std::int64_t> ratios = inner.integers_or_empty("compress_ratios", 0, 1 << 20);
  inner.require(ratios.size() >= spec.layer.size(), "model.config_list_length",
                {{"key", "compress_ratios"},
                 {"what", inner.what()},
                 {"found", std::to_string(ratios.size())},
                 {"expected", std::to_string(spec.layers)}});
  for (std::size_t i = 0; i < spec.layer.size() && i < ratios.size(); ++i)
    spec.layer[i] = {.attention = ratios[i] == 0 ? LayerAttention::kWindow : LayerAttention::kCompressedSparse,
                     .compress_ratio = ratios[i],
                     .experts = true};
  spec.kv_source_layers = inner.integers_or_empty("kv_source_layer_ids", 0, spec.layers - 1);
  spec.index_source_layers = inner.integers_or_empty("index_source_layer_ids", 0, spec.layers - 1);
  for (const std::int64_t i : spec.kv_source_layers)
    inner.require(spec.layer[static_cast<std::size_t>(i)].compress_ratio > 0, "model.config_conflict",
                  {{"what", inner.what()}, {"a", "kv_source_layer_ids"}, {"b", "compress_ratios"}});
  for (std::size_t i = 0; i < spec.layer.size(); ++i) {
    const bool owned = std::any_of(spec.kv_source_layers.begin(), spec.kv_source_layers.end(),
                                   [&](std::int64_t s) { return s <= static_cast<std::int64_t>(i); });
    inner.require(spec.layer[i].compress_ratio == 0 || owned, "model.config_conflict",
                  {{"what", inner.what()}, {"a", "kv_source_layer_ids"}, {"b", "compress_ratios"}});
  }
  spec.engram = {.rows = inner.integers_or_empty("engram_num_embeddings", 1, std::int64_t{1} << 40),
                 .layers = inner.integers_or_empty("engram_layer_ids", 0, spec.layers - 1),
                 .head_dim = inner.integer_or("engram_head_dim", 1, 1, 1 << 16),
                 .heads = inner.integer_or("engram_n_heads", 1, 1, 1 << 12),
                 .max_ngram = inner.integer_or("engram_max_ngram_size", 2, 2, 64)};
  inner.require(spec.engram.rows.size() == spec.engram.layers.size(), "model.config_conflict",
                {{"what", inner.what()}, {"a", "engram_num_embeddings"}, {"b", "engram_layer_ids"}});
  inner.ignore({"candidate_source_layer_id", "candidate_topk_blocks", "candidate_block_size", "engram_vocab_size",
                "engram_pad_token_id", "engram_compressed_vocab_size", "dspark_noise_token_id",
                "dspark_num_experts_per_tok"});
  if (inner.has("dspark_block_size")) {
    inner.integer("dspark_block_size", 1, 1 << 10);
    spec.dspark = {
        .blocks = inner.integer_or("num_nextn_predict_layers", 1, 1, 64),
        .markov_rank = inner.integer("dspark_markov_rank", 1, 1 << 16),
        .targets = static_cast<std::int64_t>(inner.integers_or_empty("dspark_target_layer_ids", 0, 4096).size()),
        .experts = inner.integer("dspark_n_routed_experts", 1, 1 << 16)};
  } else {
    inner.ignore({"num_nextn_predict_layers"});
  }
  if (auto status = inner.finish(); !status) reader.problem(status.error());
  if (read_quantization(reader, spec)) spec.expert_format = tensor::WeightFormat::mxfp4;
  if (const Json* vision = reader.object_or_null("vision_config")) {
    ConfigReader v(*vision, reader.what() + ": vision_config");
    spec.vision = {.layers = v.integer("num_hidden_layers", 1, 4096),
                   .hidden = v.integer("hidden_size", 1, 1 << 20),
                   .intermediate = v.integer("intermediate_size", 1, 1 << 24),
                   .heads = v.integer("num_attention_heads", 1, 1 << 12),
                   .patch = v.integer("patch_size", 1, 1 << 12),
                   .downsample = v.integer("downsample_ratio", 1, 1 << 8)};
    v.ignore({"rope_theta", "max_image_tokens", "min_pixels", "max_wh_ratio"});
    if (auto status = v.finish(); !status) reader.problem(status.error());
  }
  reader.expect("tie_word_embeddings", {false});
  reader.ignore({"image_token_id"});
}

Result<std::unique_ptr<Architecture>> make_deepseek_v41(const ModelSpec& spec, const Sharding& sharding) {
  FATHOM_TRY_VOID(check_divides("o_groups", spec.output_groups, sharding.tp));
  return std::make_unique<DeepseekV41>(spec, sharding);
}

}  // namespace fathom::model
