// The GPT-3-like tier: LayerNorm, learned positions, GELU, biases everywhere, tied head (arXiv 2005.14165 table 2.1).
#include <cmath>

#include "model/architectures/registry.h"
#include "model/blocks.h"

namespace fathom::model {
namespace {
using tensor::KvSegment;
using tensor::Tensor;
using tensor::Value;

class Gpt3 final : public Architecture {
 public:
  Gpt3(const ModelSpec& spec, const Sharding& sharding) : Architecture(spec, sharding) {
    EntryMaker make(table_, spec_, sharding_);
    const Sharding& s = sharding_;
    const auto plain = spec_.plain_format;
    const std::int64_t last = s.last_layer < 0 ? spec_.layers : s.last_layer, h = spec_.hidden,
                       inner = spec_.intermediate, width = spec_.heads * spec_.head_dim;
    if (s.first_layer == 0 || last == spec_.layers)
      tokens_ = add_vocabulary(make, "wte.weight", WeightClass::kEmbedding);
    if (s.first_layer == 0)
      positions_ = make.matrix("wpe.weight", WeightClass::kEmbedding, -1, spec_.max_context, h, plain);
    for (std::int64_t i = s.first_layer; i < last; ++i) {
      const std::string p = "h." + std::to_string(i) + ".";
      const int l = static_cast<int>(i);
      const auto vector = [&](const char* name, WeightClass cls, std::int64_t size, Split split = Split::kNone) {
        return make.vector(p + name, cls, l, size, plain, split, s.tp, s.tp_rank);
      };
      const auto matrix = [&](const char* name, WeightClass cls, std::int64_t rows, std::int64_t cols, Split split) {
        return make.matrix(p + name, cls, l, rows, cols, plain, split, s.tp, s.tp_rank);
      };
      Layer layer;
      layer.norm1 = vector("ln_1.weight", WeightClass::kNorm, h);
      layer.norm1_bias = vector("ln_1.bias", WeightClass::kNorm, h);
      layer.norm2 = vector("ln_2.weight", WeightClass::kNorm, h);
      layer.norm2_bias = vector("ln_2.bias", WeightClass::kNorm, h);
      const char* const names[] = {"attn.q", "attn.k", "attn.v"};
      for (int j = 0; j < 3; ++j) {
        layer.qkv[j] =
            matrix((std::string(names[j]) + ".weight").c_str(), WeightClass::kAttention, width, h, Split::kRows);
        layer.qkv_bias[j] =
            vector((std::string(names[j]) + ".bias").c_str(), WeightClass::kBias, width, Split::kColumns);
      }
      layer.o = matrix("attn.o.weight", WeightClass::kAttention, h, width, Split::kColumns);
      layer.o_bias = vector("attn.o.bias", WeightClass::kBias, h);
      layer.up = matrix("mlp.fc.weight", WeightClass::kDenseFfn, inner, h, Split::kRows);
      layer.up_bias = vector("mlp.fc.bias", WeightClass::kBias, inner, Split::kColumns);
      layer.down = matrix("mlp.proj.weight", WeightClass::kDenseFfn, h, inner, Split::kColumns);
      layer.down_bias = vector("mlp.proj.bias", WeightClass::kBias, h);
      layer.k_cache = static_cast<int>(cache_.tensors.size());
      cache_.tensors.push_back({.layer = l, .width = width / s.tp, .heads = width / s.tp / spec_.head_dim});
      cache_.tensors.push_back({.layer = l, .width = width / s.tp, .heads = width / s.tp / spec_.head_dim});
      layers_.push_back(layer);
    }
    if (last == spec_.layers) {
      norm_ = make.vector("ln_f.weight", WeightClass::kNorm, -1, h, plain);
      norm_bias_ = make.vector("ln_f.bias", WeightClass::kNorm, -1, h, plain);
      head_ = spec_.tied_embeddings ? tokens_ : add_vocabulary(make, "lm_head.weight", WeightClass::kHead);
    }
  }

  int layer_kind(std::int64_t) const override { return 0; }
  KvFigures kv_figures() const override {
    const double elements = 2.0 * static_cast<double>(spec_.layers * spec_.kv_heads * spec_.head_dim);
    return {.per_token = {{"16bit", 2 * elements}, {"fp8", elements}}, .fixed = {}};
  }

  Value embed(Pass& pass) const override {
    Value out = run_embed(pass, table_[tokens_], tokens_);
    Value position = tensor::embed(pass.ops, pass.batch.positions, pass.weights[positions_]);
    add_into(pass.ops, out, position);
    return out;
  }

  Value layer(Pass& pass, std::int64_t index, const Tensor& hidden) const override {
    const Layer& layer = layers_[static_cast<std::size_t>(index - sharding_.first_layer)];
    tensor::Ops& ops = pass.ops;
    Value normed = layer_norm(ops, hidden, pass.weights[layer.norm1], pass.weights[layer.norm1_bias], spec_.norm_eps);
    Value middle = run_attention(pass, layer, normed);
    add_into(ops, middle, hidden);
    normed = layer_norm(ops, middle, pass.weights[layer.norm2], pass.weights[layer.norm2_bias], spec_.norm_eps);
    Value up = linear(ops, normed, pass.weights[layer.up], pass.weights[layer.up_bias]);  // [T, f]
    Value active = ops.records() ? allocate(ops, up->shape) : Value();
    ops.gelu({.x = up, .out = active.defined() ? active.tensor() : up.tensor()});
    Value out = linear(ops, active.defined() ? active.tensor() : up.tensor(), pass.weights[layer.down],
                       pass.comm.rank(tensor::Group::kTensor) == 0 ? pass.weights[layer.down_bias] : tensor::Weight{});
    pass.comm.all_reduce(tensor::Group::kTensor, out);
    add_into(ops, out, middle);
    return out;
  }

  Value head(Pass& pass, const Tensor& hidden) const override {
    Value picked;
    if (pass.batch.output_rows.defined()) picked = gather_rows(pass.ops, hidden, pass.batch.output_rows);
    Value normed = layer_norm(pass.ops, picked.defined() ? picked.tensor() : hidden, pass.weights[norm_],
                              pass.weights[norm_bias_], spec_.norm_eps);
    return linear(pass.ops, normed, pass.weights[head_]);
  }

 private:
  struct Layer {
    WeightId norm1, norm1_bias, norm2, norm2_bias, qkv[3], qkv_bias[3], o, o_bias, up, up_bias, down, down_bias;
    int k_cache;
  };

  Value run_attention(Pass& pass, const Layer& layer, const Tensor& x) const {
    tensor::Ops& ops = pass.ops;
    const std::int64_t d = spec_.head_dim;
    Value q = linear(ops, x, pass.weights[layer.qkv[0]], pass.weights[layer.qkv_bias[0]]);
    Value k = linear(ops, x, pass.weights[layer.qkv[1]], pass.weights[layer.qkv_bias[1]]);
    Value v = linear(ops, x, pass.weights[layer.qkv[2]], pass.weights[layer.qkv_bias[2]]);
    KvSegment segment{.kind = KvSegment::Kind::kFresh, .k = k->split_last(d), .v = v->split_last(d)};
    if (pass.cache != nullptr) {
      const std::int64_t rows = pass.cache->rows_per_slot[static_cast<std::size_t>(layer.k_cache)];
      const Tensor keys = cache_rows(pass, layer.k_cache), values = cache_rows(pass, layer.k_cache + 1);
      ops.cache_write({.src = segment.k, .cache = keys, .rows_per_slot = rows, .batch = &pass.batch});
      ops.cache_write({.src = segment.v, .cache = values, .rows_per_slot = rows, .batch = &pass.batch});
      segment = {.kind = KvSegment::Kind::kCache, .k = keys, .v = values, .rows_per_slot = rows};
    }
    Value o = attention(ops, q->split_last(d), std::span(&segment, 1), d, 1.0 / std::sqrt(static_cast<double>(d)), {},
                        pass.batch);
    Value out = linear(ops, o->join_last(), pass.weights[layer.o],
                       pass.comm.rank(tensor::Group::kTensor) == 0 ? pass.weights[layer.o_bias] : tensor::Weight{});
    pass.comm.all_reduce(tensor::Group::kTensor, out);
    return out;
  }

  WeightId tokens_ = -1, positions_ = -1, norm_ = -1, norm_bias_ = -1, head_ = -1;
  std::vector<Layer> layers_;
};

}  // namespace

void parse_gpt3(ConfigReader& reader, ModelSpec& spec) {
  read_common(reader, spec);
  spec.intermediate = reader.integer("intermediate_size", 1, 1 << 24);
  spec.head_dim = reader.integer_or("head_dim", spec.hidden / spec.heads, 2, 1 << 14);
  reader.require(spec.kv_heads == spec.heads, "model.config_conflict",
                 {{"what", reader.what()}, {"a", "num_key_value_heads"}, {"b", "num_attention_heads"}});
  reader.expect("hidden_act", {"gelu", "gelu_new"});
  reader.expect("norm", {"LayerNorm with bias"});
  reader.expect("attention_bias", {true});
  reader.expect("mlp_bias", {true});
  reader.expect("position_embedding", {"learned absolute"});
  reader.ignore({"rope_theta", "rope_scaling"});
  spec.rope.type = RopeSpec::Type::kNone;
  spec.learned_positions = true;
  if (!reader.has("dtype") && !reader.has("torch_dtype"))
    spec.plain_format = spec.linear_format = spec.expert_format = tensor::WeightFormat::f16;
}

Result<std::unique_ptr<Architecture>> make_gpt3(const ModelSpec& spec, const Sharding& sharding) {
  return std::make_unique<Gpt3>(spec, sharding);
}

}  // namespace fathom::model
