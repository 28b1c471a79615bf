#include "model/architectures/v4_tables.h"

#include <algorithm>

#include "model/architectures/registry.h"

namespace fathom::model {
namespace {
using tensor::WeightFormat;

// f32 tensors of a released checkpoint; a checkpoint saved in another plain type has them in that type.
WeightFormat full_precision(const ModelSpec& spec) {
  return spec.plain_format == WeightFormat::bf16 ? WeightFormat::f32 : spec.plain_format;
}

// The same tensor under transformers' prefix, where only the prefix differs.
void alias(WeightTable& table, WeightId id, std::string name) { table.add_alias(id, std::move(name)); }

// Published name `prefix + tail`; transformers 5 writes "model." + prefix + (its own tail or the same).
class Names {
 public:
  Names(EntryMaker& make, std::string prefix, int layer) : make_(make), prefix_(std::move(prefix)), layer_(layer) {}
  WeightId matrix(const std::string& tail, WeightClass cls, std::int64_t rows, std::int64_t cols, WeightFormat format,
                  Split split = Split::kNone) {
    const Sharding& s = make_.sharding();
    return named(make_.matrix(prefix_ + tail, cls, layer_, rows, cols, format, split, s.tp, s.tp_rank), tail);
  }
  WeightId vector(const std::string& tail, WeightClass cls, std::int64_t size, WeightFormat format,
                  Split split = Split::kNone, const std::string& converted = "") {
    const Sharding& s = make_.sharding();
    return named(make_.vector(prefix_ + tail, cls, layer_, size, format, split, s.tp, s.tp_rank),
                 converted.empty() ? tail : converted);
  }
  const WeightTable& table() const { return make_.table(); }
  WeightId experts(const std::string& tail, std::int64_t count, std::int64_t rows, std::int64_t cols,
                   WeightFormat format, Split within) {
    return named(make_.experts(prefix_ + tail, layer_, count, rows, cols, format, within), tail);
  }

 private:
  WeightId named(WeightId id, const std::string& tail) {
    alias(make_.table(), id, "model." + prefix_ + tail);
    return id;
  }
  EntryMaker& make_;
  std::string prefix_;
  int layer_;
};

V4HyperIds add_hyper(Names& names, const ModelSpec& spec, const std::string& name) {
  const std::int64_t c = spec.hyper_streams, mix = (2 + c) * c;
  const WeightFormat f32 = full_precision(spec);
  return {.fn = names.matrix(name + "_fn", WeightClass::kHyper, mix, c * spec.hidden, f32),
          .base = names.vector(name + "_base", WeightClass::kHyper, mix, f32),
          .scale = names.vector(name + "_scale", WeightClass::kHyper, 3, f32)};
}

V4CompressorIds add_compressor(Names& names, const ModelSpec& spec, const std::string& name, WeightClass cls,
                               std::int64_t ratio, std::int64_t width, std::int64_t d) {
  V4CompressorIds ids;
  ids.kv = names.matrix(name + ".wkv.weight", cls, width, spec.hidden, spec.plain_format);
  ids.gate = names.matrix(name + ".wgate.weight", cls, width, spec.hidden, spec.plain_format);
  ids.ape = names.matrix(name + ".ape", cls, ratio, width, full_precision(spec));
  ids.norm = names.vector(name + ".norm.weight", cls, d, spec.plain_format);
  return ids;
}

}  // namespace

WeightId add_v4_vocabulary(EntryMaker& make, const std::string& bare, const std::string& converted, WeightClass cls) {
  const WeightId id = add_vocabulary(make, bare + ".weight", cls);
  alias(make.table(), id, converted + ".weight");
  if (cls == WeightClass::kHead) alias(make.table(), id, "lm_head.weight");
  return id;
}

V4LayerIds add_v4_block(EntryMaker& make, const V4BlockOptions& options) {
  const ModelSpec& spec = make.spec();
  Names names(make, options.prefix, options.layer);
  const auto attention = WeightClass::kAttention, norm = WeightClass::kNorm;
  const WeightFormat linear = spec.linear_format, plain = spec.plain_format, f32 = full_precision(spec);
  const std::int64_t h = spec.hidden, d = spec.head_dim, H = spec.heads, Q = spec.q_lora_rank, G = spec.output_groups,
                     O = spec.output_lora_rank;
  V4LayerIds ids;
  ids.q_a = names.matrix("attn.wq_a.weight", attention, Q, h, linear);
  ids.q_norm = names.vector("attn.q_norm.weight", norm, Q, plain);
  ids.q_b = names.matrix("attn.wq_b.weight", attention, H * d, Q, linear, Split::kRows);
  ids.kv = names.matrix("attn.wkv.weight", attention, d, h, linear);
  ids.kv_norm = names.vector("attn.kv_norm.weight", norm, d, plain, Split::kNone, "attn.norm.weight");
  ids.o_a = names.matrix("attn.wo_a.weight", attention, G * O, H * d / G, linear, Split::kRows);
  ids.o_b = names.matrix("attn.wo_b.weight", attention, h, G * O, linear, Split::kColumns);
  ids.sink = names.vector("attn.attn_sink", WeightClass::kSink, H, f32, Split::kColumns);
  ids.attention_norm = names.vector("attn_norm.weight", norm, h, plain);
  ids.ffn_norm = names.vector("ffn_norm.weight", norm, h, plain);
  if (!options.v41 && options.ratio > 0) {
    const bool sparse =
        spec.layer[static_cast<std::size_t>(options.layer)].attention == LayerAttention::kCompressedSparse;
    ids.compressor =
        add_compressor(names, spec, "attn.compressor", WeightClass::kCompressor, options.ratio, sparse ? 2 * d : d, d);
    if (sparse) {
      const std::int64_t di = spec.index_head_dim;
      ids.index_q = names.matrix("attn.indexer.wq_b.weight", WeightClass::kIndexer, spec.index_heads * di, Q, linear);
      ids.index_weights =
          names.matrix("attn.indexer.weights_proj.weight", WeightClass::kIndexer, spec.index_heads, h, plain);
      ids.index_compressor =
          add_compressor(names, spec, "attn.indexer.compressor", WeightClass::kIndexer, options.ratio, 2 * di, di);
    }
  }
  const std::int64_t I = spec.expert_intermediate, S = spec.shared_experts;
  ids.moe.gate = names.experts("ffn.experts.{e}.w1.weight", options.experts, I, h, spec.expert_format, Split::kRows);
  ids.moe.up = names.experts("ffn.experts.{e}.w3.weight", options.experts, I, h, spec.expert_format, Split::kRows);
  ids.moe.down = names.experts("ffn.experts.{e}.w2.weight", options.experts, h, I, spec.expert_format, Split::kColumns);
  ids.moe.first_expert = names.table()[ids.moe.gate].first_expert;
  if (S > 0) {
    const auto shared = WeightClass::kSharedExpert;
    ids.moe.shared = {.gate = names.matrix("ffn.shared_experts.w1.weight", shared, S * I, h, linear, Split::kRows),
                      .up = names.matrix("ffn.shared_experts.w3.weight", shared, S * I, h, linear, Split::kRows),
                      .down = names.matrix("ffn.shared_experts.w2.weight", shared, h, S * I, linear, Split::kColumns)};
    ids.moe.has_shared = true;
  }
  ids.moe.router = names.matrix("ffn.gate.weight", WeightClass::kRouter, options.experts, h, plain);
  if (options.hashed)
    ids.moe.table = names.matrix("ffn.gate.tid2eid", WeightClass::kHashTable, spec.vocabulary, spec.routing.top_k,
                                 WeightFormat::i64);
  else
    ids.moe.bias = names.vector("ffn.gate.bias", WeightClass::kRouter, options.experts, f32);
  if (options.v41) names.vector("ffn.gate.bias_vl", WeightClass::kRouter, options.experts, f32);  // of image tokens
  ids.attention_hyper = add_hyper(names, spec, "hc_attn");
  ids.ffn_hyper = add_hyper(names, spec, "hc_ffn");
  return ids;
}

V4LayerIds add_v4_layer(EntryMaker& make, CacheSpec& cache, int layer) {
  const ModelSpec& spec = make.spec();
  const LayerSpec& l = spec.layer[static_cast<std::size_t>(layer)];
  V4LayerIds ids = add_v4_block(make, {.prefix = "layers." + std::to_string(layer) + ".",
                                       .layer = layer,
                                       .experts = spec.routing.experts,
                                       .hashed = l.hash_routed,
                                       .ratio = l.compress_ratio});
  const auto add = [&](CacheTensor t) {
    t.layer = layer;
    cache.tensors.push_back(t);
    return static_cast<int>(cache.tensors.size() - 1);
  };
  ids.window_cache = add({.rows = tensor::RowsOf::kRing, .width = spec.head_dim, .ring_rows = spec.window});
  if (l.compress_ratio == 0) return ids;
  const bool sparse = l.attention == LayerAttention::kCompressedSparse;
  const auto add_states = [&](V4CompressorIds& c, std::int64_t d, bool index) {
    const std::int64_t width = sparse ? 2 * d : d, rows = sparse ? 2 * l.compress_ratio : l.compress_ratio;
    c.cache = add({.rows = tensor::RowsOf::kEntry, .width = d, .ratio = l.compress_ratio, .index = index});
    c.state_kv = add({.rows = tensor::RowsOf::kRing, .width = width, .ring_rows = rows, .state = true});
    c.state_gate = add({.rows = tensor::RowsOf::kRing, .width = width, .ring_rows = rows, .state = true});
  };
  add_states(ids.compressor, spec.head_dim, false);
  if (sparse) add_states(ids.index_compressor, spec.index_head_dim, true);
  return ids;
}

V4HeadIds add_v4_head(EntryMaker& make) {
  const ModelSpec& spec = make.spec();
  WeightTable& table = make.table();
  const std::int64_t c = spec.hyper_streams;
  const WeightFormat f32 = full_precision(spec);
  V4HeadIds ids;
  ids.head = add_v4_vocabulary(make, "head", "model.head", WeightClass::kHead);
  ids.norm = make.vector("norm.weight", WeightClass::kNorm, -1, spec.hidden, spec.plain_format);
  alias(table, ids.norm, "model.norm.weight");
  ids.hyper.fn = make.matrix("hc_head_fn", WeightClass::kHyper, -1, c, c * spec.hidden, f32);
  ids.hyper.base = make.vector("hc_head_base", WeightClass::kHyper, -1, c, f32);
  ids.hyper.scale = make.vector("hc_head_scale", WeightClass::kHyper, -1, 1, f32);
  alias(table, ids.hyper.fn, "model.hc_head.hc_fn");
  alias(table, ids.hyper.base, "model.hc_head.hc_base");
  alias(table, ids.hyper.scale, "model.hc_head.hc_scale");
  return ids;
}

void add_v4_extras(EntryMaker& make) {
  const ModelSpec& spec = make.spec();
  const auto cls = WeightClass::kMtp;
  const std::int64_t h = spec.hidden, c = spec.hyper_streams, V = spec.vocabulary;
  const auto plain = spec.plain_format, linear = spec.linear_format, f32 = full_precision(spec);
  const bool v41 = spec.dspark.experts > 0;
  const int after = static_cast<int>(spec.layers);
  make.set_part(WeightPart::kMtp);
  const auto add_head_hyper = [&](const std::string& p) {
    make.matrix(p + "hc_head_fn", cls, after, c, c * h, f32);
    make.vector(p + "hc_head_base", cls, after, c, f32);
    make.vector(p + "hc_head_scale", cls, after, 1, f32);
  };
  const std::int64_t blocks = spec.dspark.blocks > 0 ? spec.dspark.blocks : spec.mtp_layers;
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::string p = "mtp." + std::to_string(i) + ".";
    add_v4_block(
        make, {.prefix = p, .layer = after, .experts = v41 ? spec.dspark.experts : spec.routing.experts, .v41 = v41});
    if (spec.dspark.blocks > 0) continue;
    make.matrix(p + "e_proj.weight", cls, after, h, h, linear);
    make.matrix(p + "h_proj.weight", cls, after, h, h, linear);
    for (const char* norm : {"enorm", "hnorm", "norm"}) make.vector(p + norm + ".weight", cls, after, h, plain);
    add_head_hyper(p);
    if (!spec.mtp_copies) continue;
    make.matrix(p + "emb.weight", cls, after, V, h, plain);
    make.matrix(p + "head.weight", cls, after, V, h, plain);
  }
  if (spec.dspark.blocks > 0) {
    const std::int64_t rank = spec.dspark.markov_rank;
    make.matrix("mtp.main_proj.weight", cls, after, h, spec.dspark.targets * h, linear);
    make.vector("mtp.main_norm.weight", cls, after, h, plain);
    make.vector("mtp.norm.weight", cls, after, h, plain);
    if (!v41) add_head_hyper("mtp.");
    make.matrix("mtp.markov_w1", cls, after, V, rank, plain);
    make.matrix("mtp.markov_w2", cls, after, V, rank, plain);
    make.matrix("mtp.confidence", cls, after, 1, h + rank, plain);
  }
  make.set_part(WeightPart::kMain);
  if (spec.vision.layers > 0) add_vision(make);
}

void add_vision(EntryMaker& make) {
  const ModelSpec& spec = make.spec();
  const VisionSpec& v = spec.vision;
  const auto cls = WeightClass::kVision;
  const auto plain = spec.plain_format, f32 = full_precision(spec);
  make.set_part(WeightPart::kVision);
  make.matrix("vision.patch_embed.weight", cls, -1, v.hidden, 3 * v.patch * v.patch, plain);
  make.vector("vision.patch_embed.bias", cls, -1, v.hidden, plain);
  for (std::int64_t i = 0; i < v.layers; ++i) {
    const std::string p = "vision.layers." + std::to_string(i) + ".";
    make.vector(p + "norm1.weight", cls, -1, v.hidden, plain);
    make.vector(p + "norm2.weight", cls, -1, v.hidden, plain);
    make.matrix(p + "wqkv.weight", cls, -1, 3 * v.hidden, v.hidden, plain);
    make.vector(p + "wqkv.bias", cls, -1, 3 * v.hidden, plain);
    make.matrix(p + "wo.weight", cls, -1, v.hidden, v.hidden, plain);
    make.vector(p + "wo.bias", cls, -1, v.hidden, plain);
    make.matrix(p + "w1.weight", cls, -1, 2 * v.intermediate, v.hidden, plain);
    make.matrix(p + "w2.weight", cls, -1, v.hidden, v.intermediate, plain);
  }
  make.vector("vision.norm.weight", cls, -1, v.hidden, plain);
  make.matrix("aligner.w1.weight", cls, -1, spec.hidden, v.hidden * v.downsample * v.downsample, plain);
  make.vector("aligner.w1.bias", cls, -1, spec.hidden, plain);
  make.matrix("aligner.w2.weight", cls, -1, spec.hidden, spec.hidden, plain);
  make.vector("aligner.w2.bias", cls, -1, spec.hidden, plain);
  for (const char* name : {"image_start", "image_end", "image_newline"}) make.vector(name, cls, -1, spec.hidden, plain);
  if (spec.engram.rows
          .empty()) {  // V4-Flash-Vision-Exp: routing biases of image tokens, and the biases that hash layers lack
    make.vector("image_pad", cls, -1, spec.hidden, plain);
    for (std::int64_t i = 0; i < spec.layers + spec.dspark.blocks; ++i)
      make.vector((i < spec.layers ? "layers." + std::to_string(i) : "mtp." + std::to_string(i - spec.layers)) +
                      ".ffn.gate.bias_vl",
                  cls, -1, spec.routing.experts, f32);
    for (std::int64_t i = 0; i < spec.layers; ++i)
      if (spec.layer[static_cast<std::size_t>(i)].hash_routed)
        make.vector("layers." + std::to_string(i) + ".ffn.gate.bias", cls, -1, spec.routing.experts, f32);
  }
  make.set_part(WeightPart::kMain);
}

KvFigures v4_kv_figures(const ModelSpec& spec) {
  const auto d = static_cast<double>(spec.head_dim), di = static_cast<double>(spec.index_head_dim),
             rope = static_cast<double>(spec.qk_rope_dim);
  double sparse = 0, heavy = 0, state = 0, window_layers = 0;
  for (const LayerSpec& l : spec.layer) {
    const auto ratio = static_cast<double>(l.compress_ratio);
    ++window_layers;
    if (l.attention == LayerAttention::kCompressedSparse) {
      sparse += 1 / ratio;
      state += 2 * 2 * ratio * (2 * d + 2 * di) * 4;
    } else if (l.attention == LayerAttention::kHeavilyCompressed) {
      heavy += 1 / ratio;
      state += 2 * ratio * d * 4;
    }
  }
  // fp8 entry (FlashMLA's layout): fp8 body, bf16 rotary part, one scale byte per 64 values rounded up to 8.
  const double fp8 = (d - rope) + 2 * rope + 8;
  const auto growth = [&](double entry, double index) { return sparse * (entry + index) + heavy * entry; };
  const auto window = static_cast<double>(spec.window);
  return {.per_token = {{"bf16", growth(2 * d, 2 * di)},
                        {"fp8_fp4index", growth(fp8, di / 2 + di / 32)},
                        {"fp8_fp8index", growth(fp8, di + 4)}},
          .fixed = {{"window_bytes_fp8", window_layers * window * fp8},
                    {"window_bytes_bf16", window_layers * window * 2 * d},
                    {"compressor_state_bytes_f32", state}}};
}

// ---------------------------------------------------------------- configs

void read_v4_common(ConfigReader& reader, ModelSpec& spec) {
  read_common(reader, spec);
  spec.head_dim = reader.integer("head_dim", 2, 1 << 14);
  spec.q_lora_rank = reader.integer("q_lora_rank", 1, 1 << 20);
  spec.output_groups = reader.integer("o_groups", 1, 1 << 12);
  spec.output_lora_rank = reader.integer("o_lora_rank", 1, 1 << 20);
  spec.window = reader.integer("sliding_window", 1, 1 << 24);
  spec.index_heads = reader.integer("index_n_heads", 1, 1 << 14);
  spec.index_head_dim = reader.integer("index_head_dim", 2, 1 << 14);
  spec.index_top_k = reader.integer("index_topk", 1, 1 << 24);
  spec.hyper_streams = reader.integer_or("hc_mult", 4, 1, 64);
  spec.sinkhorn_iterations = reader.integer_or("hc_sinkhorn_iters", 20, 1, 1000);
  spec.hyper_eps = reader.number_or("hc_eps", 1e-6, 0, 1);
  spec.swiglu_limit = reader.number_or("swiglu_limit", 0, 0, 1e9);
  reader.expect("num_key_value_heads", {1});
  reader.expect("hidden_act", {"silu"});
  reader.expect("attention_bias", {false});
  reader.expect("mlp_bias", {false});
  reader.expect("scoring_func", {"sqrtsoftplus"});
  reader.expect("topk_method", {"noaux_tc"});
  reader.expect("norm_topk_prob", {true});
  reader.expect("tie_word_embeddings", {false});
  const double partial = reader.number_or("partial_rotary_factor", 0, 0, 1);
  spec.qk_rope_dim = reader.integer_or(
      "qk_rope_head_dim", partial > 0 ? static_cast<std::int64_t>(static_cast<double>(spec.head_dim) * partial) : 64, 2,
      1 << 14);
  reader.require(
      spec.qk_rope_dim % 2 == 0 && spec.qk_rope_dim <= spec.head_dim && spec.qk_rope_dim <= spec.index_head_dim,
      "model.config_conflict", {{"what", reader.what()}, {"a", "qk_rope_head_dim"}, {"b", "head_dim"}});
  reader.require(spec.heads * spec.head_dim % spec.output_groups == 0, "model.config_conflict",
                 {{"what", reader.what()}, {"a", "o_groups"}, {"b", "num_attention_heads"}});
  spec.rope_interleaved = true;
  read_experts(reader, spec);
  spec.routing.scoring = tensor::Scoring::kSqrtSoftplus;
  spec.routing.normalize = true;
  for (LayerSpec& layer : spec.layer) layer.experts = true;
}

namespace {

// Two rotary embeddings: the nested form of transformers 5, or the flat published one, whose YaRN serves compressed
// layers only and leaves cos and sin unscaled.
void read_v4_ropes(ConfigReader& reader, ModelSpec& spec) {
  const double theta = reader.number_or("rope_theta", 10000, 1, 1e12),
               compress_theta = reader.number_or("compress_rope_theta", 160000, 1, 1e12);
  const Json* parameters = reader.object_or_null("rope_parameters");
  const Json* scaling = reader.object_or_null("rope_scaling");
  spec.rope = {.theta = theta, .dims = spec.qk_rope_dim};
  spec.compress_rope = {.theta = compress_theta, .dims = spec.qk_rope_dim};
  if (parameters != nullptr && parameters->contains("main") && parameters->contains("compress") &&
      (*parameters)["main"].is_object() && (*parameters)["compress"].is_object()) {
    spec.rope = read_rope_object(reader, (*parameters)["main"], spec.qk_rope_dim, theta);
    spec.compress_rope = read_rope_object(reader, (*parameters)["compress"], spec.qk_rope_dim, compress_theta);
    return;
  }
  const Json* flat = parameters != nullptr ? parameters : scaling;
  if (flat == nullptr) return;
  spec.compress_rope = read_rope_object(reader, *flat, spec.qk_rope_dim, compress_theta);
  spec.compress_rope.theta = compress_theta;
  if (spec.compress_rope.type == RopeSpec::Type::kYarn && !spec.compress_rope.attention_factor)
    spec.compress_rope.attention_factor = 1.0;
}

void read_layer_kinds(ConfigReader& reader, ModelSpec& spec, const std::vector<std::int64_t>& ratios) {
  const std::vector<std::string> types = reader.strings_or_empty("layer_types");
  std::int64_t sparse_ratio = reader.integer_or("compress_rate_csa", 4, 1, 1 << 20),
               heavy_ratio = reader.integer_or("compress_rate_hca", 128, 1, 1 << 20);
  if (const Json* rates = reader.object_or_null("compress_rates")) {
    ConfigReader inner(*rates, reader.what() + ": compress_rates");
    sparse_ratio = inner.integer_or("compressed_sparse_attention", sparse_ratio, 1, 1 << 20);
    heavy_ratio = inner.integer_or("heavily_compressed_attention", heavy_ratio, 1, 1 << 20);
    if (auto status = inner.finish(); !status) reader.problem(status.error());
  }
  const auto short_list = [&](const char* key, std::size_t found) {
    reader.problem(fail("model.config_list_length", {{"key", key},
                                                     {"what", reader.what()},
                                                     {"found", std::to_string(found)},
                                                     {"expected", std::to_string(spec.layers)}})
                       .value());
  };
  if (!types.empty() && types.size() != spec.layer.size()) return short_list("layer_types", types.size());
  if (types.empty() && !ratios.empty() && ratios.size() < spec.layer.size())
    return short_list("compress_ratios", ratios.size());
  for (std::size_t i = 0; i < spec.layer.size(); ++i) {
    std::string type = i < 2 || i % 2 == 0 ? "heavily_compressed_attention"
                                           : "compressed_sparse_attention";  // what an absent list means
    if (!types.empty())
      type = types[i];
    else if (!ratios.empty())
      type = ratios[i] == 0              ? "sliding_attention"
             : ratios[i] == sparse_ratio ? "compressed_sparse_attention"
             : ratios[i] == heavy_ratio  ? "heavily_compressed_attention"
                                         : "compress_ratio " + std::to_string(ratios[i]);
    LayerSpec& layer = spec.layer[i];
    if (type == "sliding_attention")
      layer.attention = LayerAttention::kWindow;
    else if (type == "compressed_sparse_attention")
      layer.attention = LayerAttention::kCompressedSparse, layer.compress_ratio = sparse_ratio;
    else if (type == "heavily_compressed_attention")
      layer.attention = LayerAttention::kHeavilyCompressed, layer.compress_ratio = heavy_ratio;
    else
      reader.problem(fail_unsupported(
                         "model.config_unsupported",
                         {{"key", types.empty() ? "compress_ratios" : "layer_types"},
                          {"what", reader.what()},
                          {"value", type},
                          {"allowed", "sliding_attention, compressed_sparse_attention, heavily_compressed_attention"}})
                         .value());
  }
}

}  // namespace

void parse_deepseek_v4(ConfigReader& reader, ModelSpec& spec) {
  read_v4_common(reader, spec);
  read_v4_ropes(reader, spec);
  const std::vector<std::int64_t> ratios = reader.integers_or_empty("compress_ratios", 0, 1 << 20);
  read_layer_kinds(reader, spec, ratios);
  const std::int64_t hashed = reader.integer_or("num_hash_layers", 3, 0, 4096);
  if (!reader.has("mlp_layer_types"))
    for (std::size_t i = 0; i < spec.layer.size(); ++i)
      spec.layer[i].hash_routed = static_cast<std::int64_t>(i) < hashed;
  spec.mtp_layers = reader.integer_or("num_nextn_predict_layers", 0, 0, 64);
  const std::int64_t tail = static_cast<std::int64_t>(ratios.size()) - spec.layers;
  if (reader.has("dspark_block_size")) {
    reader.integer("dspark_block_size", 1, 1 << 10);
    spec.dspark = {
        .blocks = std::max<std::int64_t>(tail, 1),
        .markov_rank = reader.integer("dspark_markov_rank", 1, 1 << 16),
        .targets = static_cast<std::int64_t>(reader.integers_or_empty("dspark_target_layer_ids", 0, 4096).size())};
    reader.require(spec.dspark.targets > 0, "model.config_missing",
                   {{"what", reader.what()}, {"key", "dspark_target_layer_ids"}});
    reader.ignore({"dspark_noise_token_id"});
  }
  const bool quantized = read_quantization(reader, spec);
  reader.expect("expert_dtype", {"fp4", "fp8"});
  const std::string experts = reader.string_or("expert_dtype", "");
  if (quantized && experts == "fp4") {
    spec.linear_format = tensor::WeightFormat::fp8_block128_e8m0;
    spec.expert_format = tensor::WeightFormat::mxfp4;
  } else if (quantized) {  // the Base checkpoints: f32 scales, and an MTP block with its own embedding and head
    spec.mtp_copies = true;
  }
  if (reader.has("vision_n_layers")) {
    spec.vision = {.layers = reader.integer("vision_n_layers", 1, 4096),
                   .hidden = reader.integer("vision_dim", 1, 1 << 20),
                   .intermediate = reader.integer("vision_inter_dim", 1, 1 << 24),
                   .heads = reader.integer("vision_n_heads", 1, 1 << 12),
                   .patch = reader.integer("vision_patch_size", 1, 1 << 12),
                   .downsample = reader.integer("vision_downsample_ratio", 1, 1 << 8)};
    reader.ignore(
        {"vision_rope_theta", "vision_max_n_token", "vision_min_pixels", "vision_max_wh_ratio", "image_token_id"});
  }
}

}  // namespace fathom::model
