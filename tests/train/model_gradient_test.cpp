// One tiny model of each architecture, in doubles on `reference`: the gradient of the mean cross entropy, through the
// tape, against differences along a random direction of every parameter tensor. Relative error at most 1e-4. Choices
// (experts, selected rows) are frozen: a nudge that changes one is made smaller until none does.
#include <gtest/gtest.h>

#include <cmath>

#include "backends/forwarding_ops.h"
#include "backends/held.h"
#include "backends/op_case_run.h"
#include "backends/reference/reference_backend.h"
#include "backends/self/self_collectives.h"
#include "model/architecture.h"
#include "train/tape.h"

namespace fathom::test {
namespace {
using namespace tensor;  // NOLINT: the vocabulary
using model::WeightClass;

/// The choices that a pass made.
class Choices final : public ForwardingOps {
 public:
  using ForwardingOps::ForwardingOps;
  void route(const RouteArgs& args) override { inner_.route(args), note(args.indices); }
  void index_select(const IndexSelectArgs& args) override { inner_.index_select(args), note(args.selected); }
  std::vector<double> made;

 private:
  void note(const Tensor& indices) {
    for (const double value : values_of(indices)) made.push_back(value);
  }
};

constexpr std::int64_t kVocabulary = 13;

template <class T>
T must(Result<T> result) {
  FATHOM_CHECK(result.has_value(), error_text(result.error()));
  return std::move(*result);
}

/// A model with its weights in doubles, a batch of two sequences, and targets.
class TinyModel {
 public:
  explicit TinyModel(const std::string& config)
      : spec_(must(model::parse_config(config, "a tiny model"))),
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
      constants.push_back(constants_.back());
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
    batch_.ids = ids_, batch_.positions = positions_;
  }

  const model::Architecture& architecture() const { return *architecture_; }
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
    pass.ops.cross_entropy({.logits = logits, .targets = targets_, .losses = losses});
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
        Held(table ? DType::i64 : DType::f64, {weight.rows, weight.cols}, [&](std::int64_t i) {
          if (table) return static_cast<double>((i / weight.cols + (i % weight.cols) * 2 + 1) % spec_.routing.experts);
          return (around_one ? 1.0 : 0.0) + scale * random.normal();
        });
    weight.format = table ? WeightFormat::i64 : WeightFormat::f64;
    weight.data = memory_[static_cast<std::size_t>(parameter)].tensor().data;
  }

  model::ModelSpec spec_;
  std::unique_ptr<model::Architecture> architecture_;
  std::unique_ptr<Collectives> comm_ = self::make_self_collectives();
  model::WeightSet weights_;
  std::vector<Held> memory_, constants_;
  std::vector<Sequence> sequences_;
  Held ids_, targets_, positions_;
  Batch batch_;
};

using GradientLists = std::vector<std::vector<double>>;

GradientLists gradients_of(TinyModel& tiny, bool checkpointing) {
  auto backend = std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}));
  std::vector<Held> sums;
  train::ParameterGradients gradients;
  for (std::int32_t i = 0; i < tiny.parameters(); ++i) {
    const Tensor& parameter = tiny.parameter(i);
    const bool trained = parameter.defined() && parameter.dtype == DType::f64;
    sums.push_back(trained ? Held(DType::f64, parameter.shape) : Held());
    gradients.tensors.push_back(sums.back());
  }
  {
    train::Tape tape(backend->ops(), *backend->grad_ops(), gradients);
    tape.set_checkpointing(checkpointing);
    model::Pass pass = tiny.pass(tape);
    const Value losses = tiny.losses(pass);
    const Held share(DType::f64, losses->shape, [&](std::int64_t) { return 1.0 / static_cast<double>(tiny.tokens()); });
    tape.backward(losses, share);
  }
  EXPECT_EQ(backend->activations().live_bytes(), 0u);
  GradientLists out;
  for (const Held& sum : sums) out.push_back(sum.tensor().defined() ? sum.values() : std::vector<double>{});
  return out;
}

double mean_loss(TinyModel& tiny, Backend& backend, std::vector<double>& choices) {
  Choices ops(backend.ops());
  model::Pass pass = tiny.pass(ops);
  const std::vector<double> losses = values_of(tiny.losses(pass));
  choices = ops.made;
  double sum = 0;
  for (const double loss : losses) sum += loss;
  return sum / static_cast<double>(losses.size());
}

/// The slope of the loss along `direction` of one parameter, by differences of the fourth order that change no choice.
double slope_along(TinyModel& tiny, Backend& backend, Held& parameter, const std::vector<double>& direction,
                   const std::vector<double>& choices) {
  auto* values = parameter.tensor().as<double>();
  const std::vector<double> kept(values, values + direction.size());
  for (double step = 1e-3; step > 1e-7; step /= 10) {
    double loss[4];
    bool frozen = true;
    for (int i = 0; i < 4; ++i) {
      constexpr double kSteps[] = {1, -1, 2, -2};
      for (std::size_t n = 0; n < kept.size(); ++n) values[n] = kept[n] + kSteps[i] * step * direction[n];
      std::vector<double> made;
      loss[i] = mean_loss(tiny, backend, made);
      frozen = frozen && made == choices;
    }
    std::copy(kept.begin(), kept.end(), values);
    if (frozen) return (8 * (loss[0] - loss[1]) - (loss[2] - loss[3])) / (12 * step);
  }
  ADD_FAILURE() << "every nudge changes a choice";
  return 0;
}

void check_model(const std::string& config) {
  TinyModel tiny(config);
  const GradientLists gradients = gradients_of(tiny, false);
  EXPECT_EQ(gradients, gradients_of(tiny, false)) << "not the same bits the second time";
  EXPECT_EQ(gradients, gradients_of(tiny, true)) << "checkpointing changed bits";
  auto backend = std::move(*reference::make_reference_backend({.activation_dtype = DType::f64}));
  std::vector<double> choices;
  mean_loss(tiny, *backend, choices);
  Random random(11);
  std::int64_t reached = 0, total = 0;
  for (const model::WeightEntry& entry : tiny.architecture().weights().entries())
    for (std::int64_t e = 0; entry.tied_to < 0 && e < entry.experts; ++e) {
      const auto i = static_cast<std::size_t>(entry.first_parameter + e);
      const std::vector<double>& gradient = gradients[i];
      if (gradient.empty()) continue;
      std::vector<double> direction;
      double length = 0, along = 0, norm = 0;
      for (std::size_t n = 0; n < gradient.size(); ++n) {
        direction.push_back(random.normal());
        length += direction[n] * direction[n], norm += gradient[n] * gradient[n];
      }
      for (std::size_t n = 0; n < gradient.size(); ++n) along += (direction[n] /= std::sqrt(length)) * gradient[n];
      const double want = slope_along(tiny, *backend, tiny.parameter(static_cast<std::int32_t>(i)), direction, choices);
      const double size =
          std::max(std::fabs(want),
                   std::sqrt(norm / static_cast<double>(gradient.size())));  // a direction may happen to be level
      EXPECT_LE(std::fabs(along - want), 1e-4 * size + 1e-10)
          << entry.name(e) << ": tape " << along << ", differences " << want;
      ++total;
      if (norm > 0) ++reached;
    }
  EXPECT_GE(reached * 10, total * 7) << "most parameters must matter";
}

const std::string kCommon =
    R"("hidden_size": 12, "vocab_size": 13, "max_position_embeddings": 64, "rms_norm_eps": 1e-3, "hidden_act": "silu",)";

TEST(ModelGradient, Llama) {
  check_model(
      "{" + kCommon +
      R"("model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 20, "head_dim": 6,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false})");
}

TEST(ModelGradient, Qwen2WithTiedEmbeddings) {
  check_model(
      "{" + kCommon +
      R"("model_type": "qwen2", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 20,
    "rope_theta": 100.0, "tie_word_embeddings": true, "use_sliding_window": false})");
}

TEST(ModelGradient, Qwen3) {
  check_model(
      "{" + kCommon +
      R"("model_type": "qwen3", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 20, "head_dim": 6,
    "rope_theta": 100.0, "tie_word_embeddings": false, "attention_bias": false})");
}

TEST(ModelGradient, DeepseekMoe) {
  check_model(
      "{" + kCommon +
      R"("model_type": "deepseek", "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 20,
    "moe_intermediate_size": 8, "n_routed_experts": 6, "n_shared_experts": 2, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": false,
    "scoring_func": "softmax", "rope_theta": 100.0, "tie_word_embeddings": false})");
}

const std::string kLatent =
    R"("num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 20, "kv_lora_rank": 6, "qk_nope_head_dim": 5, "qk_rope_head_dim": 4,
    "v_head_dim": 3, "moe_intermediate_size": 8, "first_k_dense_replace": 1, "tie_word_embeddings": false, "attention_bias": false,)";

TEST(ModelGradient, DeepseekV2WithGroups) {
  check_model(
      "{" + kCommon + kLatent +
      R"("model_type": "deepseek_v2", "num_hidden_layers": 3, "q_lora_rank": null, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "norm_topk_prob": false, "routed_scaling_factor": 4.0,
    "rope_parameters": {"beta_fast": 32, "beta_slow": 1, "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16, "rope_theta": 100.0, "rope_type": "yarn"}})");
}

TEST(ModelGradient, DeepseekV3) {
  check_model(
      "{" + kCommon + kLatent +
      R"("model_type": "deepseek_v3", "num_hidden_layers": 3, "q_lora_rank": 7, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "n_group": 4, "topk_group": 2, "norm_topk_prob": true, "routed_scaling_factor": 2.5, "rope_interleave": true, "num_nextn_predict_layers": 0,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}})");
}

TEST(ModelGradient, DeepseekV32) {
  check_model(
      "{" + kCommon + kLatent +
      R"("model_type": "deepseek_v32", "num_hidden_layers": 2, "q_lora_rank": 7, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "n_group": 2, "topk_group": 1, "norm_topk_prob": true, "routed_scaling_factor": 2.5, "index_head_dim": 6, "index_n_heads": 2, "index_topk": 4,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}})");
}

TEST(ModelGradient, DeepseekV4) {
  check_model(
      "{" + kCommon +
      R"("model_type": "deepseek_v4", "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "qk_rope_head_dim": 4, "q_lora_rank": 7,
    "o_groups": 2, "o_lora_rank": 4, "sliding_window": 3, "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention", "compressed_sparse_attention"], "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    "index_head_dim": 6, "index_n_heads": 2, "index_topk": 2, "hc_mult": 3, "hc_sinkhorn_iters": 4, "hc_eps": 1e-3, "swiglu_limit": 10.0,
    "moe_intermediate_size": 8, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "norm_topk_prob": true, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus",
    "partial_rotary_factor": 0.5, "rope_theta": 100.0, "compress_rope_theta": 160.0,
    "rope_parameters": {"compress": {"partial_rotary_factor": 0.5, "rope_theta": 160.0, "rope_type": "default"}, "main": {"partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_type": "default"}},
    "tie_word_embeddings": false, "attention_bias": false, "mlp_bias": false})");
}

TEST(ModelGradient, Gpt3) {
  check_model(
      R"({"model_type": "gpt3", "hidden_size": 12, "vocab_size": 13, "max_position_embeddings": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20, "layer_norm_eps": 1e-3})");
}

}  // namespace
}  // namespace fathom::test
