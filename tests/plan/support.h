// What the tests of the planner share.
#pragma once
#include <gtest/gtest.h>

#include <string>

#include "plan/answer.h"
#include "plan/model_trace.h"
#include "plan/request.h"

namespace fathom::plan {

/// A small model of each architecture, in Hugging Face form.
inline std::string tiny_config(const std::string& kind) {
  const std::string common =
      R"("hidden_size": 256, "num_hidden_layers": 5, "num_attention_heads": 8, "vocab_size": 1024, "max_position_embeddings": 4096, "hidden_act": "silu", )";
  const std::string mla =
      R"("kv_lora_rank": 64, "q_lora_rank": 96, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "num_key_value_heads": 8, )";
  const std::string experts =
      R"("intermediate_size": 512, "moe_intermediate_size": 128, "n_routed_experts": 16, "n_shared_experts": 1, "num_experts_per_tok": 4, "first_k_dense_replace": 2, "moe_layer_freq": 1, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6, )";
  if (kind == "llama")
    return R"({"model_type": "llama", )" + common +
           R"("intermediate_size": 512, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "tie_word_embeddings": false})";
  if (kind == "qwen3")
    return R"({"model_type": "qwen3", )" + common +
           R"("intermediate_size": 512, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": true})";
  if (kind == "v3")
    return R"({"model_type": "deepseek_v3", )" + common + mla + experts +
           R"("n_group": 4, "topk_group": 2, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": true, "tie_word_embeddings": false})";
  return {};
}

inline std::shared_ptr<const PlanModel> model_of(const std::string& config) {
  auto model = plan_model_from_config(config);
  EXPECT_TRUE(model.has_value()) << (model ? "" : error_text(model.error()));
  return model ? *model : nullptr;
}

inline std::shared_ptr<const PlanModel> named_model(const std::string& name) {
  auto model = find_plan_model(name);
  EXPECT_TRUE(model.has_value()) << name << ": " << (model ? "" : error_text(model.error()));
  return model ? *model : nullptr;
}

inline PlanRequest request_of(const std::string& line) {
  std::string id;
  auto request = parse_request(line, id);
  EXPECT_TRUE(request.has_value()) << line << "\n" << (request ? "" : error_text(request.error()));
  return request ? *request : PlanRequest{};
}

inline std::string error_of(const std::string& line) {
  std::string id;
  auto request = parse_request(line, id);
  if (!request) return error_text(request.error());
  auto answer = make_plan(*request);
  return answer ? std::string() : error_text(answer.error());
}

}  // namespace fathom::plan
