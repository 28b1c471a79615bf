// Llama, Qwen2, Qwen3: DeepSeek-LLM, Coder, Math and the R1 distills. Touvron et al. 2023; Qwen2 and Qwen3 technical
// reports.
#include <cmath>

#include "model/architectures/registry.h"
#include "model/blocks.h"

namespace fathom::model {
namespace {

void parse_dense(ConfigReader& reader, ModelSpec& spec) {
  read_common(reader, spec);
  read_quantization(reader, spec);
  spec.intermediate = reader.integer("intermediate_size", 1, 1 << 24);
  reader.require(reader.has("head_dim") || spec.hidden % spec.heads == 0, "model.config_conflict",
                 {{"what", reader.what()}, {"a", "hidden_size"}, {"b", "num_attention_heads"}});
  spec.head_dim = reader.integer_or("head_dim", spec.hidden / spec.heads, 2, 1 << 14);
  reader.require(spec.heads % spec.kv_heads == 0, "model.config_conflict",
                 {{"what", reader.what()}, {"a", "num_attention_heads"}, {"b", "num_key_value_heads"}});
  reader.expect("hidden_act", {"silu"});
  spec.rope = read_rope(reader, spec.head_dim, 10000);
}

void expect_no_window(ConfigReader& reader) {
  reader.expect("use_sliding_window", {false});
  if (!reader.has("use_sliding_window")) reader.expect("sliding_window", {});
  reader.ignore({"sliding_window", "max_window_layers"});
  for (const std::string& kind : reader.strings_or_empty("layer_types"))
    reader.require(kind == "full_attention", "model.config_unsupported",
                   {{"key", "layer_types"}, {"what", reader.what()}, {"value", kind}, {"allowed", "full_attention"}});
}

class Dense final : public Architecture {
 public:
  Dense(const ModelSpec& spec, const Sharding& sharding) : Architecture(spec, sharding) {
    EntryMaker make(table_, spec_, sharding_);
    const std::int64_t last = sharding_.last_layer < 0 ? spec_.layers : sharding_.last_layer;
    const bool first_stage = sharding_.first_layer == 0, last_stage = last == spec_.layers;
    if (first_stage || (last_stage && spec_.tied_embeddings))
      embed_ = add_vocabulary(make, "model.embed_tokens.weight", WeightClass::kEmbedding);
    for (std::int64_t i = sharding_.first_layer; i < last; ++i) {
      const std::string p = "model.layers." + std::to_string(i) + ".";
      const int l = static_cast<int>(i);
      Layer layer;
      layer.input_norm =
          make.vector(p + "input_layernorm.weight", WeightClass::kNorm, l, spec_.hidden, spec_.plain_format);
      layer.attention = add_gqa(make, cache_, p, l, spec_.attention_bias);
      layer.ffn_norm =
          make.vector(p + "post_attention_layernorm.weight", WeightClass::kNorm, l, spec_.hidden, spec_.plain_format);
      layer.ffn = add_ffn(make, p + "mlp.gate_proj", p + "mlp.up_proj", p + "mlp.down_proj", WeightClass::kDenseFfn, l,
                          spec_.intermediate, spec_.mlp_bias);
      layers_.push_back(layer);
    }
    if (last_stage) {
      norm_ = make.vector("model.norm.weight", WeightClass::kNorm, -1, spec_.hidden, spec_.plain_format);
      head_ = spec_.tied_embeddings ? embed_ : add_vocabulary(make, "lm_head.weight", WeightClass::kHead);
    }
    constants_.push_back(inverse_frequencies(spec_.rope));
  }

  int layer_kind(std::int64_t) const override { return 0; }

  KvFigures kv_figures() const override {
    const double elements = 2.0 * static_cast<double>(spec_.layers * spec_.kv_heads * spec_.head_dim);
    return {.per_token = {{"16bit", 2 * elements}, {"fp8", elements}}, .fixed = {}};
  }

  tensor::Value embed(Pass& pass) const override { return run_embed(pass, table_[embed_], embed_); }

  tensor::Value layer(Pass& pass, std::int64_t index, const tensor::Tensor& hidden) const override {
    const Layer& layer = layers_[static_cast<std::size_t>(index - sharding_.first_layer)];
    tensor::Value normed =
        rms_norm_for_products(pass.ops, hidden, pass.weights[layer.input_norm], spec_.norm_eps);  // [T, h]
    tensor::Value middle = run_gqa(pass, spec_, layer.attention, normed);
    add_into(pass.ops, middle, hidden);
    normed = rms_norm_for_products(pass.ops, middle, pass.weights[layer.ffn_norm], spec_.norm_eps);
    tensor::Value out = run_ffn(pass, spec_, layer.ffn, normed);
    pass.comm.all_reduce(tensor::Group::kTensor, out);
    add_into(pass.ops, out, middle);
    return out;
  }

  tensor::Value head(Pass& pass, const tensor::Tensor& hidden) const override {
    return run_head(pass, spec_, hidden, norm_, head_);
  }

 private:
  struct Layer {
    WeightId input_norm, ffn_norm;
    GqaIds attention;
    FfnIds ffn;
  };
  WeightId embed_ = -1, norm_ = -1, head_ = -1;
  std::vector<Layer> layers_;
};

}  // namespace

void parse_llama(ConfigReader& reader, ModelSpec& spec) {
  parse_dense(reader, spec);
  spec.attention_bias = spec.output_bias = reader.boolean_or("attention_bias", false);
  spec.mlp_bias = reader.boolean_or("mlp_bias", false);
}

void parse_qwen2(ConfigReader& reader, ModelSpec& spec) {
  parse_dense(reader, spec);
  // Hard-wired in Qwen2: biases on q, k, v and nowhere else.
  spec.attention_bias = true;
  reader.ignore({"attention_bias"});
  reader.expect("qkv_bias", {true});
  expect_no_window(reader);
}

void parse_qwen3(ConfigReader& reader, ModelSpec& spec) {
  parse_dense(reader, spec);
  spec.attention_bias = spec.output_bias = reader.boolean_or("attention_bias", false);
  spec.qk_norm = true;
  reader.ignore({"qk_norm"});  // hard-wired, like the norm itself
  expect_no_window(reader);
}

Result<std::unique_ptr<Architecture>> make_dense(const ModelSpec& spec, const Sharding& sharding) {
  return std::make_unique<Dense>(spec, sharding);
}

}  // namespace fathom::model
