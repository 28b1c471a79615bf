// One tiny model of each architecture, its weights drawn by chance, with a batch and targets.
#pragma once
#include <cmath>
#include <cstring>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "backends/held.h"
#include "backends/op_case_run.h"
#include "backends/self/self_collectives.h"
#include "model/architecture.h"

namespace fathom::test {
using namespace tensor;  // NOLINT: the vocabulary
using model::WeightClass;

inline constexpr std::int64_t kVocabulary = 13;

template <class T>
T must(Result<T> result) {
  FATHOM_CHECK(result.has_value(), error_text(result.error()));
  return std::move(*result);
}

/// A model with its weights in `dtype`, f64 or f32, a batch of two sequences, and targets. `memory`: where backends
/// that cannot reach the heap read them.
class TinyModel {
 public:
  explicit TinyModel(const std::string& config, DType dtype = DType::f64, CaseMemory* memory = nullptr)
      : dtype_(dtype),
        place_(memory),
        spec_(must(model::parse_config(config, "a tiny model"))),
        architecture_(must(model::make_architecture(spec_))),
        weights_(architecture_->weights()) {
    Random random(7);
    for (const model::WeightEntry& entry : architecture_->weights().entries())
      for (std::int64_t e = 0; entry.tied_to < 0 && e < entry.experts; ++e)
        fill(entry, entry.first_parameter + static_cast<std::int32_t>(e), random);
    std::vector<Tensor> constants;
    for (const std::vector<float>& values : architecture_->constants()) {
      constants_.push_back(Held(DType::f32, {static_cast<std::int64_t>(values.size())}, [&](std::int64_t i) {
        return static_cast<double>(values[static_cast<std::size_t>(i)]);
      }));
      constants.push_back(placed(constants_.back()));
    }
    architecture_->bind_constants(constants);
    std::int32_t first = 0;
    std::vector<double> positions;
    for (const std::int32_t tokens : {9, 6}) {
      sequences_.push_back(
          {.slot = static_cast<std::int32_t>(sequences_.size()), .first_token = first, .tokens = tokens, .past = 0});
      for (std::int32_t i = 0; i < tokens; ++i) positions.push_back(i);
      first += tokens;
    }
    const auto numbers = [&](std::int64_t step) {
      return Held(DType::i32, {first}, [=](std::int64_t i) { return static_cast<double>(i * i * step % kVocabulary); });
    };
    ids_ = numbers(3), targets_ = numbers(5);
    positions_ = Held(DType::i32, {first}, [&](std::int64_t i) { return positions[static_cast<std::size_t>(i)]; });
    batch_.tokens = first;
    batch_.sequences = sequences_;
    batch_.ids = placed(ids_), batch_.positions = placed(positions_), at_targets_ = placed(targets_);
    table_ = Held(DType::i32, {std::ssize(sequences_), 4}, [&](std::int64_t i) {
      return static_cast<double>(reinterpret_cast<const std::int32_t*>(sequences_.data())[i]);
    });
    batch_.sequence_table = placed(table_);
  }

  const model::Architecture& architecture() const { return *architecture_; }
  DType dtype() const { return dtype_; }
  /// Where the model's backend reads what `held` holds now.
  Tensor placed(const Held& held) const {
    Tensor tensor = held;
    if (place_ == nullptr) return tensor;
    tensor.data = place_->take(tensor.bytes());
    std::memcpy(tensor.data, held.tensor().data, tensor.bytes());
    return tensor;
  }
  /// The same of something that lives as long as this.
  Tensor owned(Held held) {
    kept_.push_back(std::move(held));
    return placed(kept_.back());
  }
  std::int64_t tokens() const { return batch_.tokens; }
  Held& parameter(std::int32_t i) { return memory_[static_cast<std::size_t>(i)]; }
  std::int32_t parameters() const { return static_cast<std::int32_t>(memory_.size()); }

  model::Pass pass(Ops& ops) { return {ops, *comm_, weights_, nullptr, batch_}; }
  /// Cross entropy of every token.
  Value losses(model::Pass& pass) {
    architecture_->begin(pass);
    Value hidden = architecture_->embed(pass);
    for (std::int64_t i = 0; i < spec_.layers; ++i)
      hidden = pass.ops.block(hidden,
                              [this, &pass, i](const Tensor& input) { return architecture_->layer(pass, i, input); });
    const Value logits = architecture_->head(pass, hidden);
    Value losses = allocate(pass.ops, {logits->dim(0)});
    pass.ops.cross_entropy({.logits = logits, .targets = at_targets_, .losses = losses});
    return losses;
  }

 private:
  void fill(const model::WeightEntry& entry, std::int32_t parameter, Random& random) {
    Weight& weight = const_cast<Weight&>(weights_.all()[static_cast<std::size_t>(parameter)]);
    if (memory_.size() <= static_cast<std::size_t>(parameter)) memory_.resize(static_cast<std::size_t>(parameter) + 1);
    const bool table = entry.native == WeightFormat::i64;
    const bool around_one = entry.cls == WeightClass::kNorm;
    const double scale =
        entry.cls == WeightClass::kNorm || entry.vector ? 0.3 : 1.5 / std::sqrt(static_cast<double>(weight.cols));
    memory_[static_cast<std::size_t>(parameter)] =
        Held(table ? DType::i64 : dtype_, {weight.rows, weight.cols}, [&](std::int64_t i) {
          if (table) return static_cast<double>((i / weight.cols + (i % weight.cols) * 2 + 1) % spec_.routing.experts);
          return (around_one ? 1.0 : 0.0) + scale * random.normal();
        });
    weight.format = table ? WeightFormat::i64 : plain_weight_format(dtype_);
    weight.data = placed(memory_[static_cast<std::size_t>(parameter)]).data;
  }

  DType dtype_;
  CaseMemory* place_;
  model::ModelSpec spec_;
  std::unique_ptr<model::Architecture> architecture_;
  std::unique_ptr<Collectives> comm_ = self::make_self_collectives();
  model::WeightSet weights_;
  std::vector<Held> memory_, constants_, kept_;
  std::vector<Sequence> sequences_;
  Held ids_, targets_, positions_, table_;
  Tensor at_targets_;
  Batch batch_;
};

struct TinyConfig {
  std::string name, text;
};

inline std::vector<TinyConfig> tiny_configs() {
  const std::string kCommon =
      R"("hidden_size": 12, "vocab_size": 13, "max_position_embeddings": 64, "rms_norm_eps": 1e-3, "hidden_act": "silu",)";
  const std::string kLatent =
      R"("num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 20, "kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4,
    "v_head_dim": 3, "moe_intermediate_size": 8, "first_k_dense_replace": 1, "tie_word_embeddings": false, "attention_bias": false,)";
  return {
      {"Llama",
       "{" + kCommon +
           R"("model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 20, "head_dim": 6,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false})"},
      {"Qwen2WithTiedEmbeddings",
       "{" + kCommon +
           R"("model_type": "qwen2", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 20,
    "rope_theta": 100.0, "tie_word_embeddings": true, "use_sliding_window": false})"},
      {"Qwen3",
       "{" + kCommon +
           R"("model_type": "qwen3", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 20, "head_dim": 6,
    "rope_theta": 100.0, "tie_word_embeddings": false, "attention_bias": false})"},
      {"DeepseekMoe",
       "{" + kCommon +
           R"("model_type": "deepseek", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 20,
    "moe_intermediate_size": 8, "n_routed_experts": 6, "n_shared_experts": 2, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": false,
    "scoring_func": "softmax", "rope_theta": 100.0, "tie_word_embeddings": false})"},
      {"DeepseekV2WithGroups",
       "{" + kCommon + kLatent +
           R"("model_type": "deepseek_v2", "num_hidden_layers": 3, "q_lora_rank": null, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "norm_topk_prob": false, "routed_scaling_factor": 4.0,
    "rope_parameters": {"beta_fast": 32, "beta_slow": 1, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16, "rope_theta": 100.0, "rope_type": "yarn"}})"},
      {"DeepseekV3",
       "{" + kCommon + kLatent +
           R"("model_type": "deepseek_v3", "num_hidden_layers": 3, "q_lora_rank": 7, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "n_group": 4, "topk_group": 2, "norm_topk_prob": true, "routed_scaling_factor": 2.5, "rope_interleave": true, "num_nextn_predict_layers": 0,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}})"},
      {"DeepseekV32",
       "{" + kCommon + kLatent +
           R"("model_type": "deepseek_v32", "num_hidden_layers": 2, "q_lora_rank": 7, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5, "index_head_dim": 6, "index_n_heads": 2, "index_topk": 4,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}})"},
      {"DeepseekV4",
       "{" + kCommon +
           R"("model_type": "deepseek_v4", "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "qk_rope_head_dim": 4, "q_lora_rank": 7,
    "o_groups": 2, "o_lora_rank": 4, "sliding_window": 3, "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention", "compressed_sparse_attention"], "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    "index_head_dim": 6, "index_n_heads": 2, "index_topk": 2, "hc_mult": 3, "hc_sinkhorn_iters": 4, "hc_eps": 1e-3, "swiglu_limit": 10.0,
    "moe_intermediate_size": 8, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "norm_topk_prob": true, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus",
    "partial_rotary_factor": 0.5, "rope_theta": 100.0, "compress_rope_theta": 160.0,
    "rope_parameters": {"compress": {"partial_rotary_factor": 0.5, "rope_theta": 160.0, "rope_type": "default"}, "main": {"partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_type": "default"}},
    "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false})"},
      {"Gpt3",
       R"({"model_type": "gpt3", "hidden_size": 12, "vocab_size": 13, "max_position_embeddings": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20, "layer_norm_eps": 1e-3})"},
  };
}

inline void PrintTo(const TinyConfig& config, std::ostream* out) { *out << config.name; }

}  // namespace fathom::test
