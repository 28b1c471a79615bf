// quantization_config of compressed-tensors: what is read, and what is refused by name.
#include "model/quantization.h"

#include <gtest/gtest.h>

#include "model/architecture.h"
#include "model/spec.h"

namespace fathom::model {
namespace {
using tensor::Activations;
using tensor::WeightFormat;

constexpr std::string_view kConfig =
    R"({"model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
  "vocab_size": 128, "hidden_act": "silu", "torch_dtype": "bfloat16", "quantization_config": )";

// As llm-compressor writes it, with `weights` and `input` in the first group.
std::string object(std::string_view format, std::string_view weights, std::string_view input = "null",
                   std::string_view more = "") {
  return R"({"quant_method": "compressed-tensors", "format": ")" + std::string(format) +
         R"(", "quantization_status": "compressed", "kv_cache_scheme": null,
    "global_compression_ratio": null, "ignore": ["lm_head", "re:.*layers\\.1\\.mlp.*"], "config_groups": {"group_0": {"targets": ["Linear"], "output_activations": null,
    "input_activations": )" +
         std::string(input) + R"(, "weights": )" + std::string(weights) + "}}" + std::string(more) + "}";
}
constexpr std::string_view kFp8 =
    R"({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "channel", "dynamic": false, "observer": "minmax", "group_size": null, "actorder": null, "block_structure": null, "observer_kwargs": {}})";
constexpr std::string_view kFp8Token =
    R"({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "token", "dynamic": true})";
constexpr std::string_view kInt8 =
    R"({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false})";
constexpr std::string_view kInt8Token =
    R"({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true})";
constexpr std::string_view kInt4 =
    R"({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 128, "dynamic": false})";
constexpr std::string_view kInt4Zero =
    R"({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 128, "dynamic": false})";

Result<ModelSpec> spec_of(const std::string& quantization) {
  return parse_config(std::string(kConfig) + quantization + "}", "config");
}
std::string outcome(const std::string& quantization) {
  const auto spec = spec_of(quantization);
  if (spec) return "ok";
  EXPECT_NE(error_text(spec.error()), spec.error().key);
  return spec.error().key;
}

TEST(Quantization, EveryModuleIsStoredAsItsGroupSays) {
  const struct {
    std::string object;
    WeightFormat format;
    Activations activations;
  } cases[] = {
      {object("float-quantized", kFp8), WeightFormat::fp8_row, Activations::kAsTheyAre},
      {object("float-quantized", kFp8, kFp8Token), WeightFormat::fp8_row, Activations::kPerToken},
      {object("int-quantized", kInt8, kInt8Token), WeightFormat::int8_row, Activations::kPerToken},
      {object("pack-quantized", kInt4), WeightFormat::int4_group128, Activations::kAsTheyAre},
      {object("pack-quantized", kInt4Zero), WeightFormat::int4_group128_zero, Activations::kAsTheyAre},
  };
  for (const auto& c : cases) {
    const auto spec = spec_of(c.object);
    ASSERT_TRUE(spec) << error_text(spec.error());
    const auto architecture = make_architecture(*spec);
    ASSERT_TRUE(architecture);
    int quantized = 0;
    for (const WeightEntry& entry : (*architecture)->weights().entries()) {
      const bool expected = !entry.vector && entry.cls != WeightClass::kEmbedding && entry.cls != WeightClass::kHead &&
                            entry.pattern.find("layers.1.mlp") == std::string::npos;
      EXPECT_EQ(entry.native, expected ? c.format : WeightFormat::bf16) << entry.pattern;
      EXPECT_EQ(entry.activations, expected ? c.activations : Activations::kAsTheyAre) << entry.pattern;
      quantized += expected;
    }
    EXPECT_EQ(quantized, 4 + 3 + 4);
    // What Fathom writes says the same.
    const Json written = compressed_tensors_json(c.format, c.activations, {"lm_head", "re:.*layers\\.1\\.mlp.*"});
    const auto again = spec_of(dump_json(written));
    ASSERT_TRUE(again) << error_text(again.error());
    EXPECT_EQ(again->linear_format, c.format);
    EXPECT_EQ(again->quantization.groups[0].activations, c.activations);
    EXPECT_EQ(again->quantization.ignore.size(), 2u);
  }
}

TEST(Quantization, Fp8InBlocksRoundsActivationsAsItsReleaseSays) {
  constexpr std::string_view kBlock =
      R"({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "block", "block_structure": [128, 128], "dynamic": false})";
  constexpr std::string_view kGroup =
      R"({"num_bits": 8, "type": "float", "symmetric": true, "strategy": "group", "group_size": 128, "dynamic": true})";
  const auto deepseek = [](std::string_view more) {
    return R"({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128])" +
           std::string(more) + "}";
  };
  const std::pair<std::string, Activations> cases[] = {
      {deepseek(""), Activations::kPerGroup},
      {deepseek(R"(, "scale_fmt": "ue8m0")"), Activations::kPerGroupOfPowers},
      {object("float-quantized", kBlock, kGroup), Activations::kPerGroup},
      {object("float-quantized", kBlock, kFp8Token), Activations::kAsTheyAre},
      {object("float-quantized", kBlock), Activations::kAsTheyAre},
  };
  for (const auto& [text, activations] : cases) {
    const auto spec = parse_config(
        R"({"model_type": "deepseek_v3", "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 2,
      "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
      "first_k_dense_replace": 1, "moe_layer_freq": 1, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
      "vocab_size": 128, "hidden_act": "silu", "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": true, "routed_scaling_factor": 2.5,
      "torch_dtype": "bfloat16", "quantization_config": )" +
            text + "}",
        "config");
    ASSERT_TRUE(spec) << error_text(spec.error());
    const auto architecture = make_architecture(*spec);
    ASSERT_TRUE(architecture);
    int blocks = 0, experts = 0;
    for (const WeightEntry& entry : (*architecture)->weights().entries()) {
      const bool block = entry.native == WeightFormat::fp8_block128;
      EXPECT_EQ(entry.activations, block ? activations : Activations::kAsTheyAre) << entry.pattern;
      blocks += block;
      experts += block && entry.per_expert;
    }
    EXPECT_GT(blocks, 10) << text;
    EXPECT_EQ(experts, text.find("ignore") == std::string::npos ? 3 : 0) << text;  // those of layer 1 are ignored
  }
}

TEST(Quantization, ScalesAreOfTheModelsType) {
  std::string config = std::string(kConfig) + object("pack-quantized", kInt4Zero) + "}";
  config.replace(config.find("bfloat16"), 8, "float16");
  const auto spec = parse_config(config, "config");
  ASSERT_TRUE(spec) << error_text(spec.error());
  EXPECT_EQ(spec->linear_format, WeightFormat::int4_group128_zero_f16);
}

TEST(Quantization, WhatIsNotUnderstoodIsNamed) {
  const auto changed = [](std::string_view weights, std::string_view from, std::string_view to) {
    std::string text(weights);
    text.replace(text.find(from), from.size(), to);
    return text;
  };
  EXPECT_EQ(outcome(object("marlin-24", kInt4)), "model.quantization_field");
  EXPECT_EQ(outcome(object("pack-quantized", changed(kInt4, "128", "64"))), "model.quantization_scheme");
  EXPECT_EQ(outcome(object("pack-quantized", changed(kInt4, "4", "3"))), "model.quantization_scheme");
  EXPECT_EQ(outcome(object("pack-quantized", kInt4, kInt8Token)), "model.quantization_scheme");
  EXPECT_EQ(outcome(object("pack-quantized", changed(kInt4, "\"dynamic\": false", "\"actorder\": \"group\""))),
            "model.quantization_field");
  EXPECT_EQ(outcome(object("float-quantized", kInt8)), "model.quantization_scheme");
  EXPECT_EQ(outcome(object("int-quantized", changed(kInt8, "true", "false"), kInt8Token)), "model.quantization_scheme");
  EXPECT_EQ(outcome(object("int-quantized", kInt8, changed(kInt8Token, "\"dynamic\": true", "\"dynamic\": false"))),
            "model.quantization_scheme");
  EXPECT_EQ(outcome(object("float-quantized", changed(kFp8, "\"observer\"", "\"novelty\""))),
            "model.quantization_field");
  EXPECT_EQ(outcome(object("float-quantized", kFp8, "null", R"(, "novelty": 1)")), "model.quantization_field");
  EXPECT_EQ(outcome(object("float-quantized", kFp8, "null", R"(, "sparsity_config": {"format": "sparse-24-bitmask"})")),
            "model.quantization_field");
  EXPECT_EQ(outcome(object("float-quantized", kFp8, "null", R"(, "sparsity_config": {}, "transform_config": {})")),
            "ok");
  EXPECT_EQ(outcome(R"({"quant_method": "compressed-tensors"})"), "model.quantization_field");
  EXPECT_EQ(outcome(R"({"quant_method": "gptq", "bits": 4})"), "model.quantization");
  const auto named = spec_of(object("pack-quantized", changed(kInt4, "128", "64")));
  ASSERT_FALSE(named);
  EXPECT_NE(error_text(named.error()).find("quantization_config.group_0.weights"), std::string::npos);
}

TEST(Quantization, PatternsMatchFromTheBeginning) {
  const auto matches = [](std::string_view pattern, std::string_view module) {
    const auto parsed = ModulePattern::parse(pattern);
    return parsed && parsed->matches(module);
  };
  EXPECT_TRUE(matches("lm_head", "lm_head"));
  EXPECT_FALSE(matches("lm_head", "lm_head2"));
  EXPECT_TRUE(matches("re:model.layers.*", "model.layers.3.mlp.up_proj"));
  EXPECT_FALSE(matches("re:layers", "model.layers.3.mlp.up_proj"));
  EXPECT_TRUE(matches("re:.*gate$", "model.layers.3.mlp.gate"));
  EXPECT_FALSE(matches("re:.*gate$", "model.layers.3.mlp.gate_proj"));
  EXPECT_FALSE(ModulePattern::parse("re:(").has_value());
}

}  // namespace
}  // namespace fathom::model
