#include <gtest/gtest.h>

#include <filesystem>

#include "base/files.h"
#include "model/sizes.h"
#include "model/spec.h"
#include "support/paths.h"

namespace fathom::model {
namespace {

constexpr std::string_view kLlama =
    R"("model_type": "llama", "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2,
  "num_attention_heads": 4, "vocab_size": 512)";

std::string key_of(const std::string& extra) {
  const auto spec = parse_config("{" + std::string(kLlama) + extra + "}", "test");
  return spec ? "reads" : spec.error().key;
}

TEST(Config, HarmlessKeysPassAndOthersAreNamed) {
  EXPECT_EQ(key_of(""), "reads");
  EXPECT_EQ(key_of(R"(, "use_cache": true, "torch_dtype": "bfloat16")"), "reads");
  EXPECT_EQ(key_of(R"(, "logit_softcap": 30)"), "model.config_unknown_key");
  EXPECT_EQ(key_of(R"(, "hidden_act": "relu")"), "model.config_unsupported");
  EXPECT_EQ(key_of(R"(, "rope_scaling": {"type": "longrope", "factor": 2})"), "model.rope_type");
  EXPECT_EQ(key_of(R"(, "rope_scaling": {"type": "linear"})"), "model.rope_missing");
  EXPECT_EQ(key_of(R"(, "num_key_value_heads": 3)"), "model.config_conflict");
  EXPECT_EQ(key_of(R"(, "max_position_embeddings": -1)"), "model.config_range");
  EXPECT_EQ(key_of(R"(, "rms_norm_eps": "small")"), "base.json_wrong_type");
  EXPECT_EQ(key_of(R"(, "quantization_config": {"quant_method": "gptq"})"),
            "model.quantization");  // no dense DeepSeek was released so
}

TEST(Config, NothingIsNoModel) {
  for (const char* text : {"", "[]", "{}", "null", "{\"model_type\": 3}", "{\"model_type\": \"gpt5\"}",
                           "{\"model_type\": \"llama\"}", "{\"model_type\": \"deepseek_v41\"}"})
    EXPECT_FALSE(parse_config(text, "test")) << text;
}

TEST(Config, TheFuzzCorpusReadsAndSizes) {
  int read = 0;
  for (const auto& file :
       std::filesystem::directory_iterator(test::fixtures().parent_path() / "fuzz" / "corpus" / "config")) {
    const auto spec = load_config(file.path());
    ASSERT_TRUE(spec) << error_text(spec.error());
    const auto sized = size_model(*spec);
    ASSERT_TRUE(sized) << error_text(sized.error());
    EXPECT_GT(sized->sizes.parameters_main, 0u);
    const auto cut = with_layers(*spec, 1);
    ASSERT_TRUE(cut) << file.path() << ": " << error_text(cut.error());
    EXPECT_EQ(cut->layers, 1);
    ++read;
  }
  EXPECT_GE(read, 13);
}

}  // namespace
}  // namespace fathom::model
