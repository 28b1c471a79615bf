// DeepSeek-MoE 16B: llama's attention with fine-grained and shared experts. Dai et al. 2024 (arXiv 2401.06066).
#include "model/architectures/registry.h"
#include "model/blocks.h"
#include "model/moe.h"

namespace fathom::model {
namespace {

class DeepseekMoe final : public Architecture {
 public:
  DeepseekMoe(const ModelSpec& spec, const Sharding& sharding) : Architecture(spec, sharding) {
    EntryMaker make(table_, spec_, sharding_);
    const std::int64_t last = sharding_.last_layer < 0 ? spec_.layers : sharding_.last_layer;
    if (sharding_.first_layer == 0) embed_ = add_vocabulary(make, "model.embed_tokens.weight", WeightClass::kEmbedding);
    for (std::int64_t i = sharding_.first_layer; i < last; ++i) {
      const std::string p = "model.layers." + std::to_string(i) + ".";
      const int l = static_cast<int>(i);
      Layer layer;
      layer.input_norm =
          make.vector(p + "input_layernorm.weight", WeightClass::kNorm, l, spec_.hidden, spec_.plain_format);
      layer.attention = add_gqa(make, cache_, p, l, spec_.attention_bias);
      layer.ffn_norm =
          make.vector(p + "post_attention_layernorm.weight", WeightClass::kNorm, l, spec_.hidden, spec_.plain_format);
      layer.feed_forward = add_feed_forward(make, p, l);
      layers_.push_back(layer);
    }
    if (last == spec_.layers) {
      norm_ = make.vector("model.norm.weight", WeightClass::kNorm, -1, spec_.hidden, spec_.plain_format);
      head_ = add_vocabulary(make, "lm_head.weight", WeightClass::kHead);
    }
    constants_.push_back(inverse_frequencies(spec_.rope));
  }

  int layer_kind(std::int64_t layer) const override {
    return spec_.layer[static_cast<std::size_t>(layer)].experts ? 1 : 0;
  }

  KvFigures kv_figures() const override {
    const double elements = 2.0 * static_cast<double>(spec_.layers * spec_.kv_heads * spec_.head_dim);
    return {.per_token = {{"16bit", 2 * elements}, {"fp8", elements}}, .fixed = {}};
  }

  tensor::Value embed(Pass& pass) const override { return run_embed(pass, table_[embed_], embed_); }

  tensor::Value layer(Pass& pass, std::int64_t index, const tensor::Tensor& hidden) const override {
    const Layer& layer = layers_[static_cast<std::size_t>(index - sharding_.first_layer)];
    tensor::Value normed = rms_norm(pass.ops, hidden, pass.weights[layer.input_norm], spec_.norm_eps);  // [T, h]
    tensor::Value middle = run_gqa(pass, spec_, layer.attention, normed);
    add_into(pass.ops, middle, hidden);
    normed = rms_norm(pass.ops, middle, pass.weights[layer.ffn_norm], spec_.norm_eps);
    tensor::Value out = run_feed_forward(pass, spec_, layer.feed_forward, normed);
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
    FeedForwardIds feed_forward;
  };
  WeightId embed_ = -1, norm_ = -1, head_ = -1;
  std::vector<Layer> layers_;
};

}  // namespace

void parse_deepseek_moe(ConfigReader& reader, ModelSpec& spec) {
  read_common(reader, spec);
  read_quantization(reader, spec);
  spec.intermediate = reader.integer("intermediate_size", 1, 1 << 24);
  reader.require(reader.has("head_dim") || spec.hidden % spec.heads == 0, "model.config_conflict",
                 {{"what", reader.what()}, {"a", "hidden_size"}, {"b", "num_attention_heads"}});
  spec.head_dim = reader.integer_or("head_dim", spec.hidden / spec.heads, 2, 1 << 14);
  reader.require(spec.heads % spec.kv_heads == 0, "model.config_conflict",
                 {{"what", reader.what()}, {"a", "num_attention_heads"}, {"b", "num_key_value_heads"}});
  reader.expect("hidden_act", {"silu"});
  reader.expect("scoring_func", {"softmax"});
  reader.expect("topk_method", {"greedy"});
  spec.attention_bias = spec.output_bias = reader.boolean_or("attention_bias", false);
  spec.rope = read_rope(reader, spec.head_dim, 10000);
  read_experts(reader, spec);
  reader.expect("tie_word_embeddings", {false});
}

Result<std::unique_ptr<Architecture>> make_deepseek_moe(const ModelSpec& spec, const Sharding& sharding) {
  return std::make_unique<DeepseekMoe>(spec, sharding);
}

}  // namespace fathom::model
