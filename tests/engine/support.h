// What the tests of the engine share: a tiny model of every architecture, made ready to step.
#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "backends/backends.h"
#include "base/i18n.h"
#include "engine/engine.h"
#include "model/architecture.h"
#include "support/paths.h"
#include "weights/loader.h"
#include "weights/synth.h"

namespace fathom::engine::test {

/// DeepSeek-MoE-16B's architecture has no golden folder of its own.
inline constexpr const char* kTinyMoe =
    R"({"model_type": "deepseek", "hidden_size": 64, "vocab_size": 512, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "hidden_act": "silu",
  "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 160, "moe_intermediate_size": 48, "n_routed_experts": 8, "n_shared_experts": 2,
  "num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": false, "scoring_func": "softmax", "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "float32"})";

/// One of every architecture and lowering that can run: a golden folder, or "moe".
inline const std::vector<std::string> kTinyModels = {"llama-mha", "llama3-gqa", "qwen2-bias", "qwen2-tied",
                                                     "qwen3",     "moe",        "v2-lite",    "v2-group",
                                                     "v3",        "v32",        "v4",         "v4-mixed"};

inline std::string test_name(std::string name) {
  for (char& c : name)
    if (c == '-') c = '_';
  return name;
}

inline Result<std::unique_ptr<model::Architecture>> tiny_architecture(const std::string& name) {
  if (name == "moe") {
    FATHOM_TRY(const model::ModelSpec spec, model::parse_config(kTinyMoe, "moe"));
    return model::make_architecture(spec);
  }
  FATHOM_TRY(const model::ModelSpec spec, model::load_config(fathom::test::fixtures() / "golden" / name));
  return model::make_architecture(spec);
}

/// Random weights: what is compared here is the engine with itself.
inline Result<std::unique_ptr<Engine>> make_engine(const std::string& name, const EngineOptions& options,
                                                   const std::string& device = "cpu", int threads = 2) {
  FATHOM_TRY(auto architecture, tiny_architecture(name));
  FATHOM_TRY(auto backend, backends::make_backend(device, {.threads = threads}));
  FATHOM_TRY(auto weights, weights::synthesize_in_memory(architecture->weights(), *backend,
                                                         {.storage = {}, .seed = 3, .threads = 1, .progress = {}}));
  return Engine::create(std::move(architecture), std::move(backend), std::move(weights), options);
}

/// `n` token ids that look arbitrary and are the same every time.
inline std::vector<std::int32_t> some_ids(std::int64_t n, std::int64_t vocabulary, std::int64_t salt = 0) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < n; ++i)
    ids.push_back(static_cast<std::int32_t>(2 + (i * 7919 + salt * 104729 + i * i * 31) % (vocabulary - 2)));
  return ids;
}

/// FATHOM_FAULT while it lives (engine/fault.h).
class Fault {
 public:
  explicit Fault(const char* what) { ::setenv("FATHOM_FAULT", what, 1); }
  ~Fault() { ::unsetenv("FATHOM_FAULT"); }
};

inline void expect_close(std::span<const float> got, std::span<const float> want, double tolerance,
                         const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (std::size_t i = 0; i < got.size(); ++i)
    ASSERT_TRUE(std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i])) <= tolerance)
        << what << ": " << got[i] << " and " << want[i] << " at " << i;
}

}  // namespace fathom::engine::test
