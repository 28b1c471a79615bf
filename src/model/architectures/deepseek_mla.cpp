// DeepSeek-V2, V3 / R1 / V3.1 and V3.2: multi-head latent attention (arXiv 2405.04434 §2.1), sparse with an indexer in
// V3.2. Prefill expands the latents of its own tokens into keys and values; with a cache behind it, the up-projection
// is absorbed into query and output instead, and attention runs over the latents themselves.
#include <algorithm>
#include <cmath>

#include "model/architectures/registry.h"
#include "model/blocks.h"
#include "model/moe.h"

namespace fathom::model {
namespace {
using tensor::KvSegment;
using tensor::Tensor;
using tensor::Value;

constexpr double kLatentNormEps = 1e-6;  // fixed in the reference, whatever rms_norm_eps says

struct MlaIds {
  WeightId q = -1, q_a = -1, q_a_norm = -1, q_b = -1, kv_a, kv_a_norm, kv_b, o, q_a_bias = -1, kv_a_bias = -1,
           o_bias = -1;
  WeightId index_q = -1, index_k = -1, index_norm = -1, index_norm_bias = -1, index_weights = -1;
  int cache = -1, index_cache = -1;
};

double attention_scale(const ModelSpec& spec) {
  double scale = 1.0 / std::sqrt(static_cast<double>(spec.qk_nope_dim + spec.qk_rope_dim));
  if (spec.rope.type != RopeSpec::Type::kDefault && spec.rope.mscale_all_dim != 0) {
    const double m = spec.rope.factor <= 1 ? 1.0 : 0.1 * spec.rope.mscale_all_dim * std::log(spec.rope.factor) + 1.0;
    scale *= m * m;
  }
  return scale;
}

/// The type that activations may be rounded to for a product with such a weight.
DType product_type(tensor::WeightFormat format) {
  switch (format) {
    case tensor::WeightFormat::f64:
    case tensor::WeightFormat::f32:
      return DType::f32;
    case tensor::WeightFormat::f16:
      return DType::f16;
    default:
      return DType::bf16;
  }
}

class DeepseekMla final : public Architecture {
 public:
  DeepseekMla(const ModelSpec& spec, const Sharding& sharding) : Architecture(spec, sharding) {
    EntryMaker make(table_, spec_, sharding_);
    const std::int64_t last = sharding_.last_layer < 0 ? spec_.layers : sharding_.last_layer;
    if (sharding_.first_layer == 0) embed_ = add_vocabulary(make, "model.embed_tokens.weight", WeightClass::kEmbedding);
    for (std::int64_t i = sharding_.first_layer; i < last; ++i) {
      const std::string p = "model.layers." + std::to_string(i) + ".";
      const int l = static_cast<int>(i);
      Layer layer;
      layer.input_norm =
          make.vector(p + "input_layernorm.weight", WeightClass::kNorm, l, spec_.hidden, spec_.plain_format);
      layer.attention = add_attention(make, p, l, true);
      layer.ffn_norm =
          make.vector(p + "post_attention_layernorm.weight", WeightClass::kNorm, l, spec_.hidden, spec_.plain_format);
      layer.feed_forward = add_feed_forward(make, p, l);
      layers_.push_back(layer);
    }
    if (last == spec_.layers) {
      norm_ = make.vector("model.norm.weight", WeightClass::kNorm, -1, spec_.hidden, spec_.plain_format);
      head_ = spec_.tied_embeddings ? embed_ : add_vocabulary(make, "lm_head.weight", WeightClass::kHead);
      add_mtp(make);
    }
    constants_.push_back(inverse_frequencies(spec_.rope));
  }

  int layer_kind(std::int64_t layer) const override {
    return spec_.layer[static_cast<std::size_t>(layer)].experts ? 1 : 0;
  }

  KvFigures kv_figures() const override {
    const auto layers = static_cast<double>(spec_.layers);
    const auto latent = static_cast<double>(spec_.kv_lora_rank + spec_.qk_rope_dim);
    const auto index = static_cast<double>(spec_.index_head_dim);
    KvFigures figures;
    figures.per_token.push_back({"16bit", 2 * (latent + index) * layers});
    // FlashMLA's layout: fp8 latent with one f32 scale per 128 values, bf16 rotary part; index keys fp8 with one f32
    // scale.
    if (spec_.routing.scoring != tensor::Scoring::kSoftmax) {
      const double entry = static_cast<double>(spec_.kv_lora_rank) + static_cast<double>(spec_.kv_lora_rank) / 128 * 4 +
                           2 * static_cast<double>(spec_.qk_rope_dim);
      figures.per_token.push_back({"fp8_flashmla", layers * (entry + (index > 0 ? index + 4 : 0))});
    }
    return figures;
  }

  Value embed(Pass& pass) const override { return run_embed(pass, table_[embed_], embed_); }

  Value layer(Pass& pass, std::int64_t index, const Tensor& hidden) const override {
    const Layer& layer = layers_[static_cast<std::size_t>(index - sharding_.first_layer)];
    const auto norm_of_x = layer.attention.index_q >= 0 ? &tensor::rms_norm : &tensor::rms_norm_for_products;
    Value normed = norm_of_x(pass.ops, hidden, pass.weights[layer.input_norm], spec_.norm_eps);  // [T, h]
    Value middle = run_attention(pass, layer.attention, normed);
    add_into(pass.ops, middle, hidden);
    normed = rms_norm(pass.ops, middle, pass.weights[layer.ffn_norm], spec_.norm_eps);
    Value out = run_feed_forward(pass, spec_, layer.feed_forward, normed);
    add_into(pass.ops, out, middle);
    return out;
  }

  Value head(Pass& pass, const Tensor& hidden) const override { return run_head(pass, spec_, hidden, norm_, head_); }

 private:
  struct Layer {
    WeightId input_norm, ffn_norm;
    MlaIds attention;
    FeedForwardIds feed_forward;
  };

  MlaIds add_attention(EntryMaker& make, const std::string& prefix, int layer, bool cached) {
    const Sharding& s = sharding_;
    const auto cls = WeightClass::kAttention;
    const auto linear = spec_.linear_format, plain = spec_.plain_format;
    const std::int64_t h = spec_.hidden, H = spec_.heads, qk = spec_.qk_nope_dim + spec_.qk_rope_dim,
                       r = spec_.kv_lora_rank;
    const std::string p = prefix + "self_attn.";
    MlaIds ids;
    if (spec_.q_lora_rank > 0) {
      ids.q_a = make.matrix(p + "q_a_proj.weight", cls, layer, spec_.q_lora_rank, h, linear);
      if (spec_.attention_bias)
        ids.q_a_bias = make.vector(p + "q_a_proj.bias", WeightClass::kBias, layer, spec_.q_lora_rank, plain);
      ids.q_a_norm = make.vector(p + "q_a_layernorm.weight", WeightClass::kNorm, layer, spec_.q_lora_rank, plain);
      ids.q_b = make.matrix(p + "q_b_proj.weight", cls, layer, H * qk, spec_.q_lora_rank, linear, Split::kRows, s.tp,
                            s.tp_rank);
    } else {
      ids.q = make.matrix(p + "q_proj.weight", cls, layer, H * qk, h, linear, Split::kRows, s.tp, s.tp_rank);
    }
    ids.kv_a = make.matrix(p + "kv_a_proj_with_mqa.weight", cls, layer, r + spec_.qk_rope_dim, h, linear);
    if (spec_.attention_bias)
      ids.kv_a_bias =
          make.vector(p + "kv_a_proj_with_mqa.bias", WeightClass::kBias, layer, r + spec_.qk_rope_dim, plain);
    ids.kv_a_norm = make.vector(p + "kv_a_layernorm.weight", WeightClass::kNorm, layer, r, plain);
    ids.kv_b = make.matrix(p + "kv_b_proj.weight", cls, layer, H * (spec_.qk_nope_dim + spec_.v_head_dim), r, linear,
                           Split::kRows, s.tp, s.tp_rank);
    ids.o =
        make.matrix(p + "o_proj.weight", cls, layer, h, H * spec_.v_head_dim, linear, Split::kColumns, s.tp, s.tp_rank);
    if (spec_.attention_bias) ids.o_bias = make.vector(p + "o_proj.bias", WeightClass::kBias, layer, h, plain);
    if (cached) {
      ids.cache = static_cast<int>(cache_.tensors.size());
      cache_.tensors.push_back({.layer = layer, .width = r + spec_.qk_rope_dim, .apart = spec_.qk_rope_dim});
    }
    if (spec_.index_top_k > 0) add_indexer(make, ids, p + "indexer.", layer, cached);
    return ids;
  }

  void add_indexer(EntryMaker& make, MlaIds& ids, const std::string& p, int layer, bool cached) {
    const auto cls = WeightClass::kIndexer;
    const std::int64_t d = spec_.index_head_dim;
    const auto f32 = spec_.plain_format == tensor::WeightFormat::bf16 ? tensor::WeightFormat::f32 : spec_.plain_format;
    ids.index_q =
        make.matrix(p + "wq_b.weight", cls, layer, spec_.index_heads * d, spec_.q_lora_rank, spec_.linear_format);
    ids.index_k = make.matrix(p + "wk.weight", cls, layer, d, spec_.hidden, spec_.linear_format);
    ids.index_norm = make.vector(p + "k_norm.weight", cls, layer, d, f32);
    ids.index_norm_bias = make.vector(p + "k_norm.bias", cls, layer, d, f32);
    ids.index_weights =
        make.matrix(p + "weights_proj.weight", cls, layer, spec_.index_heads, spec_.hidden, spec_.plain_format);
    if (!cached) return;
    ids.index_cache = static_cast<int>(cache_.tensors.size());
    cache_.tensors.push_back({.layer = layer, .width = d, .index = true});
  }

  // The multi-token-prediction blocks of V3: counted, not run.
  void add_mtp(EntryMaker& make) {
    make.set_part(WeightPart::kMtp);
    for (std::int64_t k = 0; k < spec_.mtp_layers; ++k) {
      const std::int64_t index = spec_.layers + k;
      const std::string p = "model.layers." + std::to_string(index) + ".";
      const int l = static_cast<int>(index);
      add_attention(make, p, l, false);
      add_moe(make, p, l);
      for (const char* norm : {"input_layernorm", "post_attention_layernorm", "enorm", "hnorm", "shared_head.norm"})
        make.vector(p + norm + ".weight", WeightClass::kMtp, l, spec_.hidden, spec_.plain_format);
      make.matrix(p + "eh_proj.weight", WeightClass::kMtp, l, spec_.hidden, 2 * spec_.hidden, spec_.plain_format);
      make.matrix(p + "embed_tokens.weight", WeightClass::kMtp, l, spec_.vocabulary, spec_.hidden, spec_.plain_format);
      make.matrix(p + "shared_head.head.weight", WeightClass::kMtp, l, spec_.vocabulary, spec_.hidden,
                  spec_.plain_format);
    }
    make.set_part(WeightPart::kMain);
  }

  // The indexer's choice: [T, top_k] positions.
  Value select(Pass& pass, const MlaIds& ids, const Tensor& x, const Tensor& q_latent) const {
    tensor::Ops& ops = pass.ops;
    Value q = linear(ops, q_latent, pass.weights[ids.index_q]);  // [T, Hi·d]
    const Tensor qh = q->split_last(spec_.index_head_dim);
    Value projected = linear(ops, x, pass.weights[ids.index_k]);  // [T, d]
    Value key =
        layer_norm(ops, projected, pass.weights[ids.index_norm], pass.weights[ids.index_norm_bias], kLatentNormEps);
    const Tensor kh = key->split_last(spec_.index_head_dim);  // [T, 1, d]
    // Unlike the attention beside it, the indexer rotates halves, at the head's front.
    ops.rope({.x = qh, .cos = pass.rotary[0].cos, .sin = pass.rotary[0].sin});
    ops.rope({.x = kh, .cos = pass.rotary[0].cos, .sin = pass.rotary[0].sin});
    Value weights = linear(ops, x, pass.weights[ids.index_weights]);  // [T, Hi]
    KvSegment keys{.kind = KvSegment::Kind::kFresh, .k = kh, .v = kh};
    std::int64_t most = spec_.index_top_k;
    if (pass.cache != nullptr) {
      const std::int64_t rows = pass.cache->rows_per_slot[static_cast<std::size_t>(ids.index_cache)];
      ops.cache_write(
          {.src = key, .cache = cache_columns(pass, ids.index_cache), .rows_per_slot = rows, .batch = &pass.batch});
      const Tensor cached = cache_rows(pass, ids.index_cache);
      keys = {.kind = KvSegment::Kind::kCache, .k = cached, .v = cached, .rows_per_slot = rows};
      most = std::min(most, rows);
    }
    Value selected = allocate(ops, DType::i32, {pass.batch.tokens, most});
    const double scale =
        1.0 / std::sqrt(static_cast<double>(spec_.index_head_dim)) / std::sqrt(static_cast<double>(spec_.index_heads));
    ops.index_select(
        {.q = qh, .weights = weights, .keys = keys, .scale = scale, .selected = selected, .batch = &pass.batch});
    return selected;
  }

  Value run_attention(Pass& pass, const MlaIds& ids, const Tensor& x) const {
    tensor::Ops& ops = pass.ops;
    const std::int64_t nope = spec_.qk_nope_dim, rope = spec_.qk_rope_dim, r = spec_.kv_lora_rank;
    Value q_latent, q, down;
    if (ids.q >= 0)
      q = linear(ops, x, pass.weights[ids.q]);
    else
      down = linear(ops, x, pass.weights[ids.q_a], weight_or_none(pass, ids.q_a_bias));      // [T, q_lora]
    Value kv = linear(ops, x, pass.weights[ids.kv_a], weight_or_none(pass, ids.kv_a_bias));  // [T, r + rope]
    if (ids.q < 0) {
      q_latent = rms_norm(ops, down, pass.weights[ids.q_a_norm], kLatentNormEps);
      down.reset();
      q = linear(ops, q_latent, pass.weights[ids.q_b]);
    }
    const Tensor qh = q->split_last(nope + rope);  // [T, H, nope + rope]
    const Tensor k_rope = kv->columns(r, rope);    // [T, rope]
    const tensor::RotaryPair& rotary = pass.rotary[0];
    ops.rope({.x = qh, .cos = rotary.cos, .sin = rotary.sin, .first_dim = nope, .interleaved = spec_.rope_interleaved});
    ops.rope(
        {.x = k_rope.split_last(rope), .cos = rotary.cos, .sin = rotary.sin, .interleaved = spec_.rope_interleaved});
    Value latent = rms_norm(ops, kv->columns(0, r), pass.weights[ids.kv_a_norm], kLatentNormEps);  // [T, r]
    if (pass.cache != nullptr) {
      const std::int64_t rows = pass.cache->rows_per_slot[static_cast<std::size_t>(ids.cache)];
      ops.cache_write(
          {.src = latent, .cache = cache_columns(pass, ids.cache), .rows_per_slot = rows, .batch = &pass.batch});
      ops.cache_write(
          {.src = k_rope, .cache = cache_apart(pass, ids.cache), .rows_per_slot = rows, .batch = &pass.batch});
    }
    Value selected;
    if (ids.index_q >= 0) selected = select(pass, ids, x, q_latent);
    q_latent.reset();
    Value o = starts_fresh(pass) ? attend_expanded(pass, ids, qh, latent, k_rope, selected)
                                 : attend_absorbed(pass, ids, qh, selected);
    q.reset();
    Value out =
        linear(ops, o->join_last(), pass.weights[ids.o],
               pass.comm.rank(tensor::Group::kTensor) == 0 ? weight_or_none(pass, ids.o_bias) : tensor::Weight{});
    pass.comm.all_reduce(tensor::Group::kTensor, out);
    return out;
  }

  // Keys and values of every head, made from this batch's own latents: [T, H, v].
  Value attend_expanded(Pass& pass, const MlaIds& ids, const Tensor& q, const Tensor& latent, const Tensor& k_rope,
                        const Value& selected) const {
    Value kv = linear(pass.ops, latent, pass.weights[ids.kv_b]);                // [T, H·(nope + v)]
    const Tensor heads = kv->split_last(spec_.qk_nope_dim + spec_.v_head_dim);  // [T, H, nope + v]
    const KvSegment segment{.kind = KvSegment::Kind::kFresh,
                            .k = heads.columns(0, spec_.qk_nope_dim),
                            .k_shared = k_rope,
                            .v = heads.columns(spec_.qk_nope_dim, spec_.v_head_dim),
                            .selected = selected.tensor()};
    return attention(pass.ops, q, std::span(&segment, 1), spec_.v_head_dim, attention_scale(spec_), {}, pass.batch,
                     product_type(pass.weights[ids.kv_b].format));
  }

  // Queries carried into latent space, one shared key-value head there, and back out: [T, H, v].
  Value attend_absorbed(Pass& pass, const MlaIds& ids, const Tensor& q, const Value& selected) const {
    tensor::Ops& ops = pass.ops;
    const std::int64_t nope = spec_.qk_nope_dim, rope = spec_.qk_rope_dim, r = spec_.kv_lora_rank, v = spec_.v_head_dim;
    const tensor::Weight& kv_b = pass.weights[ids.kv_b];
    FATHOM_CHECK(pass.cache != nullptr, "latent space has its keys in a cache");
    Value qa = allocate(ops, {q.dim(0), q.dim(1), r + rope});
    ops.copy({.x = q.columns(nope, rope), .out = qa->columns(r, rope)});
    ops.grouped_linear({.x = q.columns(0, nope),
                        .weight = kv_b,
                        .group_rows = nope + v,
                        .row_offset = 0,
                        .rows = nope,
                        .transposed = true,
                        .out = qa->columns(0, r)});
    const Tensor keys = cache_rows(pass, ids.cache);  // [rows, 1, r]
    const KvSegment segment{.kind = KvSegment::Kind::kCache,
                            .k = keys,
                            .k_shared = cache_apart(pass, ids.cache),
                            .v = keys,
                            .rows_per_slot = pass.cache->rows_per_slot[static_cast<std::size_t>(ids.cache)],
                            .selected = selected.tensor()};
    Value latent = attention(ops, qa, std::span(&segment, 1), r, attention_scale(spec_), {}, pass.batch, DType::f32,
                             true);  // [T, H, r]
    Value out = allocate(ops, {q.dim(0), q.dim(1), v});
    ops.grouped_linear({.x = latent,
                        .weight = kv_b,
                        .group_rows = nope + v,
                        .row_offset = nope,
                        .rows = v,
                        .transposed = false,
                        .out = out});
    return out;
  }

  WeightId embed_ = -1, norm_ = -1, head_ = -1;
  std::vector<Layer> layers_;
};

void parse_mla(ConfigReader& reader, ModelSpec& spec) {
  read_common(reader, spec);
  spec.intermediate = reader.integer("intermediate_size", 1, 1 << 24);
  spec.q_lora_rank = reader.integer_or("q_lora_rank", 0, 1, 1 << 20);
  spec.kv_lora_rank = reader.integer("kv_lora_rank", 1, 1 << 20);
  spec.qk_nope_dim = reader.integer("qk_nope_head_dim", 1, 1 << 14);
  spec.qk_rope_dim = reader.integer("qk_rope_head_dim", 2, 1 << 14);
  spec.v_head_dim = reader.integer("v_head_dim", 1, 1 << 14);
  spec.head_dim = spec.qk_nope_dim + spec.qk_rope_dim;
  reader.ignore({"head_dim", "qk_head_dim"});
  reader.require(spec.kv_heads == spec.heads, "model.config_conflict",
                 {{"what", reader.what()}, {"a", "num_key_value_heads"}, {"b", "num_attention_heads"}});
  reader.expect("hidden_act", {"silu"});
  reader.expect("mlp_bias", {false});
  spec.attention_bias = reader.boolean_or("attention_bias", false);
  spec.rope = read_rope(reader, spec.qk_rope_dim, 10000);
  spec.rope_interleaved = true;
  read_quantization(reader, spec);
  read_experts(reader, spec);
  reader.expect("tie_word_embeddings", {false});
}

void parse_v3_like(ConfigReader& reader, ModelSpec& spec) {
  parse_mla(reader, spec);
  reader.expect("topk_method", {"noaux_tc"});
  reader.expect("scoring_func", {"sigmoid"});
  spec.routing.scoring = tensor::Scoring::kSigmoid;
  spec.routing.group_rank = tensor::GroupRank::kTopTwoSum;
  spec.rope_interleaved = reader.boolean_or("rope_interleave", true);
  spec.mtp_layers = reader.integer_or("num_nextn_predict_layers", 0, 0, 64);
  reader.require(spec.routing.groups == 1 || spec.routing.experts / spec.routing.groups >= 2, "model.config_conflict",
                 {{"what", reader.what()}, {"a", "n_group"}, {"b", "n_routed_experts"}});
}

}  // namespace

void parse_deepseek_v2(ConfigReader& reader, ModelSpec& spec) {
  parse_mla(reader, spec);
  const std::string method = reader.string_or("topk_method", "greedy");
  reader.expect("topk_method", {"greedy", "group_limited_greedy"});
  reader.expect("scoring_func", {"softmax"});
  reader.expect("norm_topk_prob", {false});  // the reference scales only when it does not normalize; no release sets it
  reader.expect("num_nextn_predict_layers", {0});
  if (method == "greedy") spec.routing.groups = spec.routing.top_groups = 1;
  spec.routing.scoring = tensor::Scoring::kSoftmax;
  spec.routing.group_rank = tensor::GroupRank::kMax;
}

void parse_deepseek_v3(ConfigReader& reader, ModelSpec& spec) { parse_v3_like(reader, spec); }

void parse_deepseek_v32(ConfigReader& reader, ModelSpec& spec) {
  parse_v3_like(reader, spec);
  spec.index_heads = reader.integer("index_n_heads", 1, 1 << 14);
  spec.index_head_dim = reader.integer("index_head_dim", 2, 1 << 14);
  spec.index_top_k = reader.integer("index_topk", 1, 1 << 24);
  reader.require(spec.q_lora_rank > 0, "model.config_missing", {{"what", reader.what()}, {"key", "q_lora_rank"}});
  reader.require(spec.index_head_dim >= spec.qk_rope_dim, "model.config_conflict",
                 {{"what", reader.what()}, {"a", "index_head_dim"}, {"b", "qk_rope_head_dim"}});
  for (const std::string& kind : reader.strings_or_empty("layer_types"))
    reader.require(
        kind == "deepseek_sparse_attention", "model.config_unsupported",
        {{"key", "layer_types"}, {"what", reader.what()}, {"value", kind}, {"allowed", "deepseek_sparse_attention"}});
  for (LayerSpec& layer : spec.layer) layer.attention = LayerAttention::kSparse;
}

Result<std::unique_ptr<Architecture>> make_deepseek_mla(const ModelSpec& spec, const Sharding& sharding) {
  return std::make_unique<DeepseekMla>(spec, sharding);
}

}  // namespace fathom::model
