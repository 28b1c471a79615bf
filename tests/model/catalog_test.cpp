#include "model/catalog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <unistd.h>

#include <fstream>
#include <set>

#include "base/json.h"
#include "base/strings.h"
#include "model/catalog_describe.h"
#include "model/catalog_match.h"
#include "support/paths.h"

namespace fathom::model {
namespace {

using ::testing::HasSubstr;

const ModelCatalog& facts() {
  static const Result<ModelCatalog> catalog = ModelCatalog::load("/nonexistent");
  EXPECT_TRUE(catalog) << error_text(catalog.error());
  return *catalog;
}

std::string id_of(std::string_view name) {
  const auto found = facts().find(name);
  return found ? (*found)->id : "error: " + found.error().key.substr(found.error().key.find('.') + 1);
}

Result<ModelCatalog> with_user_file(std::string_view text) {
  const Path folder = std::filesystem::temp_directory_path() / ("fathom_models_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder / "models");
  std::ofstream(folder / "models" / "mine.json") << text;
  auto catalog = ModelCatalog::load(folder);
  std::filesystem::remove_all(folder);
  return catalog;
}

std::string error_of(std::string_view user_file) {
  const auto catalog = with_user_file(user_file);
  return catalog ? "no error" : catalog.error().key.substr(catalog.error().key.find('.') + 1);
}

TEST(ModelCatalogFacts, HoldsEveryModelWithItsConfig) {
  EXPECT_EQ(facts().models().size(), 67u);
  const Json expected = *parse_json(read_file(test::fixtures() / "model" / "facts.json", 1 << 20).value(), "facts");
  EXPECT_EQ(expected.size(), 67u);
  std::set<std::string> ids;
  for (const ModelEntry& model : facts().models()) {
    EXPECT_TRUE(ids.insert(model.id).second) << model.id;
    EXPECT_TRUE(expected.contains(model.id)) << model.id;
    const auto config = parse_json(model.config, model.id);
    ASSERT_TRUE(config) << model.id;
    EXPECT_EQ((*config)["model_type"], model.model_type) << model.id;
    EXPECT_FALSE(model.released.empty() || model.license.empty() || model.family.empty() || model.native_dtype.empty())
        << model.id;
    EXPECT_GE(model.context_length, 2048) << model.id;
    EXPECT_TRUE(model.published_total && model.published_active) << model.id;
    EXPECT_GT(model.tokenizer.vocab_size, 0) << model.id;
  }
}

TEST(ModelCatalogFacts, EveryEntryHasASourceADateAndAConfidence) {
  for (const ModelEntry& model : facts().models()) {
    EXPECT_FALSE(model.sources.empty()) << model.id;
    EXPECT_FALSE(model.as_of.empty()) << model.id;
    EXPECT_TRUE(model.confidence == "config seen" || model.confidence == "secondary" ||
                model.confidence == "unverified")
        << model.id;
  }
}

TEST(ModelCatalogFacts, ConfigsAreAsPublished) {
  const ModelEntry& r1 = *facts().find("r1").value();
  EXPECT_EQ(r1.config_of, "deepseek-ai/DeepSeek-V3");
  const Json config = *parse_json(r1.config, "r1");
  EXPECT_EQ(config["num_hidden_layers"], 61);
  EXPECT_EQ(config["rope_scaling"]["factor"], 40);
  EXPECT_EQ(config["quantization_config"]["weight_block_size"], Json::array({128, 128}));
  EXPECT_EQ(*facts().find("v3").value()->hub_params, 684'531'386'000);
  EXPECT_EQ(*facts().find("v4.1-flash").value()->published_checkpoint_bytes, 510'286'023'000u);
  const Json v4 = *parse_json(facts().find("v4-pro").value()->config, "v4-pro");
  EXPECT_EQ(v4["compress_ratios"].size(), 62u);
}

TEST(ModelNamesTest, EveryIdAndShortNameResolvesOrSaysAmbiguous) {
  for (const ModelEntry& model : facts().models()) {
    EXPECT_EQ(id_of(model.id), model.id);
    EXPECT_EQ(id_of(to_lower(model.id)), model.id);
    EXPECT_EQ(id_of(model.id.substr(model.id.find('/') + 1)), model.id);
    for (const std::string& name : model.short_names) {
      const std::string found = id_of(name);
      EXPECT_TRUE(found == model.id || found == "error: ambiguous") << name << " -> " << found;
      EXPECT_TRUE(found == model.id || name == "r1-8b") << name << " is ambiguous";
    }
  }
}

TEST(ModelNamesTest, NamesPeopleUse) {
  const std::pair<const char*, const char*> expected[] = {
      {"r1", "DeepSeek-R1"},
      {"v3", "DeepSeek-V3"},
      {"deepseek-r1", "DeepSeek-R1"},
      {"DEEPSEEK-AI/DEEPSEEK-R1", "DeepSeek-R1"},
      {"R1-0528", "DeepSeek-R1-0528"},
      {"deepseek v3.1", "DeepSeek-V3.1"},
      {"v3.2", "DeepSeek-V3.2"},
      {"v3.2_exp", "DeepSeek-V3.2-Exp"},
      {"r1-distill-qwen-7b", "DeepSeek-R1-Distill-Qwen-7B"},
      {"r1-distill-llama-70b", "DeepSeek-R1-Distill-Llama-70B"},
      {"r1-7b", "DeepSeek-R1-Distill-Qwen-7B"},
      {"v2", "DeepSeek-V2"},
      {"v2-lite", "DeepSeek-V2-Lite"},
      {"coder-33b", "deepseek-coder-33b-instruct"},
      {"coder-v2-lite", "DeepSeek-Coder-V2-Lite-Instruct"},
      {"llm-7b", "deepseek-llm-7b-chat"},
      {"math-7b", "deepseek-math-7b-instruct"},
      {"moe-16b", "deepseek-moe-16b-chat"},
      {"v4-flash", "DeepSeek-V4-Flash"},
      {"v4-pro", "DeepSeek-V4-Pro"},
      {"V4.1-Flash", "DeepSeek-V4.1-Flash"},
      {"v4-flash-0731", "DeepSeek-V4-Flash-0731"},
      {"math-v2", "DeepSeek-Math-V2"},
  };
  for (const auto& [name, id] : expected) EXPECT_EQ(id_of(name), std::string("deepseek-ai/") + id) << name;
  EXPECT_EQ(id_of("gpt3"), "generic/dense-175b");
  EXPECT_EQ(id_of("dense-7b"), "generic/dense-7b");
  EXPECT_EQ(id_of("llama-13b"), "generic/dense-13b");
  EXPECT_THAT(accepted_names(*facts().find("r1").value()), ::testing::ElementsAre("r1", "r1-671b"));
}

TEST(ModelNamesTest, AmbiguousAndUnknownNamesSuggest) {
  for (const char* name : {"r1-distill", "v4", "coder", "deepseek-ai/deepseek-coder", "r1-8b", "dense"})
    EXPECT_EQ(id_of(name), "error: ambiguous") << name;
  EXPECT_THAT(error_text(facts().find("r1-distill").error()), HasSubstr("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"));
  EXPECT_THAT(error_text(facts().find("r1-destill-qwen-7b").error()),
              HasSubstr("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"));
  EXPECT_THAT(error_text(facts().find("deepseek-v33").error()), HasSubstr("deepseek-ai/DeepSeek-V3"));
  for (const char* name : {"", " ", "-", "deepseek-ai/", "someone/DeepSeek-R1", "gpt-5", "\xff\xfe", "zzzzzzzzzzzzzz"})
    EXPECT_FALSE(facts().find(name)) << name;
  rc::check("any text is answered", [](const std::string& text) {
    const auto found = facts().find(text);
    RC_ASSERT(found.has_value() || is_valid_utf8(error_text(found.error())));
  });
}

TEST(ModelLists, Filter) {
  EXPECT_EQ(facts().list({}).size(), 67u);
  EXPECT_EQ(facts().list({.family = "generic"}).size(), 5u);
  EXPECT_EQ(facts().list({.family = "r1-distill"}).size(), 7u);
  for (const ModelEntry* model : facts().list({.max_params = 8e9})) EXPECT_LE(*model->published_total, 8e9);
  EXPECT_EQ(facts().list({.search = "qwen3 8B"}).size(), 1u);
  EXPECT_TRUE(facts().list({.search = "no such model"}).empty());
}

TEST(ModelLists, ParameterCounts) {
  EXPECT_DOUBLE_EQ(parse_parameter_count("70B").value(), 70e9);
  EXPECT_DOUBLE_EQ(parse_parameter_count("1.6t").value(), 1.6e12);
  EXPECT_DOUBLE_EQ(parse_parameter_count(" 350 M ").value(), 350e6);
  EXPECT_DOUBLE_EQ(parse_parameter_count("7e9").value(), 7e9);
  for (const char* bad : {"", "B", "-1B", "0", "nan", "inf", "7X", "1e300", "7BB"})
    EXPECT_FALSE(parse_parameter_count(bad)) << bad;
}

TEST(ModelJson, Parses) {
  const Json list = *parse_json(list_json(facts().list({})), "list");
  EXPECT_EQ(list["models"].size(), 67u);
  const Json v3 = *parse_json(entry_json(*facts().find("v3").value()), "v3");
  EXPECT_EQ(v3["config"]["hidden_size"], 7168);
  EXPECT_EQ(v3["published"]["active_params"], 37e9);
  EXPECT_EQ(v3["kv_bytes_per_token"]["16bit"], 70272);
  EXPECT_EQ(v3["parameters_main"], 671'026'419'200);
  // What --json shows of an entry can be pasted into a user's file.
  for (const char* name : {"r1", "v4-flash", "dense-175b"}) {
    const auto pasted = with_user_file(R"({"models": [)" + entry_json(*facts().find(name).value()) + "]}");
    EXPECT_TRUE(pasted) << error_text(pasted.error());
  }
}

TEST(ModelUser, AddsAndChanges) {
  const auto catalog = with_user_file(R"({"as_of": "2027-01", "models": [
    {"id": "me/my-model", "family": "mine", "short_names": ["mine"], "same_config_as": "deepseek-ai/DeepSeek-V2-Lite"},
    {"id": "me/other", "config": {"model_type": "llama", "max_position_embeddings": 4096}},
    {"id": "deepseek-ai/DeepSeek-V3", "license": "MIT", "config": {"rope_theta": 20000}}]})");
  ASSERT_TRUE(catalog) << error_text(catalog.error());
  EXPECT_EQ(catalog->models().size(), 69u);
  const ModelEntry& mine = *catalog->find("mine").value();
  EXPECT_EQ(mine.model_type, "deepseek_v2");
  EXPECT_EQ(mine.confidence, "user");
  EXPECT_EQ(mine.as_of, "2027-01");
  EXPECT_EQ(catalog->find("me/other").value()->context_length, 4096);
  const ModelEntry& v3 = *catalog->find("v3").value();
  EXPECT_EQ(v3.license, "MIT");
  EXPECT_THAT(v3.overridden.at("license"), HasSubstr("mine.json"));
  const Json config = *parse_json(v3.config, "v3");
  EXPECT_EQ(config["rope_theta"], 20000);
  EXPECT_EQ(config["num_hidden_layers"], 61);
  EXPECT_EQ((*parse_json(catalog->find("r1").value()->config, "r1"))["rope_theta"], 20000);  // siblings follow
}

TEST(ModelUser, HostileFilesGiveOneClearError) {
  const auto text = [](const std::string& more) { return R"({"models": [{"id": "me/x", )" + more + "}]}"; };
  EXPECT_EQ(error_of(text(R"("config": {"model_type": "llama"})")), "no error");
  EXPECT_EQ(error_of("{"), "json_invalid");
  EXPECT_EQ(error_of("\xff{}"), "json_invalid");
  EXPECT_EQ(error_of("[]"), "not_an_object");
  EXPECT_EQ(error_of(std::string(200, '[')), "json_too_deep");
  EXPECT_EQ(error_of(R"({"models": {}})"), "section_not_list");
  EXPECT_EQ(error_of(R"({"models": [1]})"), "record_not_object");
  EXPECT_EQ(error_of(R"({"models": [{}]})"), "bad_id");
  EXPECT_EQ(error_of(R"({"model": []})"), "unknown_field");
  EXPECT_EQ(error_of(text(R"("colour": "red")")), "unknown_field");
  EXPECT_EQ(error_of(text(R"("family": "x")")), "no_config");
  EXPECT_EQ(error_of(text(R"("config": 5)")), "config_not_object");
  EXPECT_EQ(error_of(text(R"("config": {})")), "missing_field");
  EXPECT_EQ(error_of(text(R"("config": {"model_type": 5})")), "json_wrong_type");
  EXPECT_EQ(error_of(text(R"("same_config_as": "me/x")")), "config_cycle");
  EXPECT_EQ(error_of(text(R"("same_config_as": "me/y"}, {"id": "me/y", "same_config_as": "me/x")")), "config_cycle");
  EXPECT_EQ(error_of(text(R"("same_config_as": "me/nothing")")), "unknown_config_of");
  EXPECT_EQ(error_of(text(R"("same_config_as": 7)")), "json_wrong_type");
  EXPECT_EQ(error_of(text(R"("tokenizer": "none", "config": {"model_type": "llama"})")), "unknown_tokenizer");
  EXPECT_EQ(error_of(text(R"("short_names": "x", "config": {"model_type": "llama"})")), "not_text_list");
  EXPECT_EQ(error_of(text(R"("published": {"total_params": -5}, "config": {"model_type": "llama"})")), "out_of_range");
  EXPECT_EQ(error_of(text(R"("published": {"total_params": 1e300}, "config": {"model_type": "llama"})")),
            "out_of_range");
  EXPECT_EQ(error_of(text(R"("published": {"total_params": "7B"}, "config": {"model_type": "llama"})")),
            "json_wrong_type");
  EXPECT_EQ(error_of(text(R"("published": {"total_params": NaN}, "config": {"model_type": "llama"})")), "json_invalid");
  EXPECT_EQ(error_of(text(R"("published": {"params": 5}, "config": {"model_type": "llama"})")), "unknown_field");
  EXPECT_EQ(error_of(text(R"("context_length": 0, "config": {"model_type": "llama"})")), "out_of_range");
  EXPECT_EQ(error_of(text(R"("notes": ")" + std::string(5000, 'x') + R"(", "config": {"model_type": "llama"})")),
            "not_a_line");
  EXPECT_EQ(error_of(text(R"("license": "\u001b[2J", "config": {"model_type": "llama"})")), "not_a_line");
  EXPECT_EQ(error_of(R"({"models": [{"id": "deepseek-ai/DeepSeek-V3", "same_config_as": "deepseek-ai/DeepSeek-R1"}]})"),
            "config_cycle");
  EXPECT_EQ(error_of(std::string(5 * kMiB, ' ')), "file_too_large");
  EXPECT_THAT(error_text(with_user_file(text(R"("same_config_as": "me/x")")).error()), HasSubstr("mine.json"));
}

// What the fuzzer keeps: files (first byte 1) and names (first byte 3), each answered or refused in one sentence.
TEST(ModelUser, FuzzCorpusReplays) {
  int replayed = 0;
  for (const auto& file :
       std::filesystem::directory_iterator(std::filesystem::path(FATHOM_SOURCE_DIR) / "tests/fuzz/corpus/catalog")) {
    const std::string text = read_file(file.path(), 1 << 20).value();
    if (text.empty()) continue;
    const std::string_view rest = std::string_view(text).substr(1);
    if (text[0] % 4 == 1) {
      const auto catalog = with_user_file(rest);
      EXPECT_TRUE(catalog || is_valid_utf8(error_text(catalog.error()))) << file.path();
      ++replayed;
    } else if (text[0] % 4 == 3) {
      const auto found = facts().find(rest);
      EXPECT_TRUE(found || is_valid_utf8(error_text(found.error()))) << file.path();
      ++replayed;
    }
  }
  EXPECT_GE(replayed, 8);
}

}  // namespace
}  // namespace fathom::model
