// Files that are wrong, lie or are hostile: one clear sentence each.
#include <functional>

#include "support.h"

namespace fathom::text {
namespace {

std::string key_of(const Json& json) {
  const auto tokenizer = test::make(json);
  return tokenizer ? "loads" : tokenizer.error().key;
}
std::string key_of_text(std::string_view text) {
  const auto tokenizer = Tokenizer::from_text(text, {}, "test");
  return tokenizer ? "loads" : tokenizer.error().key;
}

TEST(TokenizerFile, TheBaseLoads) { EXPECT_EQ(key_of(test::byte_level_json()), "loads"); }

TEST(TokenizerFile, ContradictionsAreNamed) {
  const std::pair<std::function<void(Json&)>, const char*> cases[] = {
      {[](Json& j) { j.erase("model"); }, "text.not_a_tokenizer"},
      {[](Json& j) { j["model"]["type"] = "Unigram"; }, "text.unknown_type"},
      {[](Json& j) { j["model"]["vocab"]["x!"] = -1; }, "text.vocab_bad_id"},
      {[](Json& j) { j["model"]["vocab"]["x!"] = 4'194'304; }, "text.vocab_bad_id"},
      {[](Json& j) { j["model"]["vocab"]["x!"] = 5; }, "text.vocab_duplicate_id"},
      {[](Json& j) { j["model"]["vocab"]["x!"] = 1.5; }, "text.json_expected"},
      {[](Json& j) { j["model"]["vocab"]["x!"] = "7"; }, "text.json_expected"},
      {[](Json& j) { j["model"]["vocab"] = Json::array(); }, "text.json_expected"},
      {[](Json& j) { j["model"].erase("vocab"); }, "text.bad_field"},
      {[](Json& j) { j["model"].erase("merges"); }, "text.bad_field"},
      {[](Json& j) {
         j["model"]["merges"].push_back({"h", "missing"});
       },
       "text.merge_not_in_vocab"},
      {[](Json& j) {
         j["model"]["merges"].push_back({"z", "q"});
       },
       "text.merge_not_in_vocab"},
      {[](Json& j) { j["model"]["merges"].push_back("h e l"); }, "text.merge_not_a_pair"},
      {[](Json& j) { j["model"]["merges"].push_back("he"); }, "text.merge_not_a_pair"},
      {[](Json& j) { j["model"]["merges"].push_back({"h"}); }, "text.merge_not_a_pair"},
      {[](Json& j) {
         j["model"]["merges"].push_back({"h", "e", "l"});
       },
       "text.json_expected"},
      {[](Json& j) { j["model"]["unk_token"] = "nowhere"; }, "text.unk_not_in_vocab"},
      {[](Json& j) { j["model"]["dropout"] = 0.1; }, "text.model_field"},
      {[](Json& j) { j["model"]["continuing_subword_prefix"] = "##"; }, "text.model_field"},
      {[](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "text.model_field"},
      {[](Json& j) { j["model"]["byte_fallback"] = "yes"; }, "text.bad_field"},
      {[](Json& j) { j["added_tokens"][0]["special"] = 1; }, "text.bad_field"},
      {[](Json& j) { j["added_tokens"] = "<s>"; }, "text.bad_field"},
      {[](Json& j) {
         j["normalizer"] = {{"type", "Precompiled"}};
       },
       "text.unknown_type"},
      {[](Json& j) {
         j["decoder"] = {{"type", "WordPiece"}};
       },
       "text.unknown_type"},
      {[](Json& j) {
         j["post_processor"] = {{"type", "BertProcessing"}};
       },
       "text.unknown_type"},
      {[](Json& j) {
         j["post_processor"] = {{"type", "TemplateProcessing"}, {"single", Json::array()}};
       },
       "text.bad_field"},
      {[](Json& j) {
         j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}};
       },
       "text.regex_unsupported"}};
  for (const auto& [change, key] : cases) {
    Json json = test::byte_level_json();
    change(json);
    EXPECT_EQ(key_of(json), key) << dump_json(json).substr(0, 200);
  }
  Json unset = test::byte_level_json();
  unset["model"]["dropout"] = nullptr;
  unset["model"]["continuing_subword_prefix"] = unset["model"]["end_of_word_suffix"] = "";
  EXPECT_EQ(key_of(unset), "loads");
}

TEST(TokenizerFile, WhatIsNotJsonIsNamedWithItsPlace) {
  EXPECT_EQ(key_of_text(""), "text.json_expected");
  EXPECT_EQ(key_of_text("[]"), "text.json_expected");
  EXPECT_EQ(key_of_text("\xff"), "text.invalid_utf8");
  EXPECT_EQ(key_of_text(R"({"model": {"vocab": {"\ud800": 1}, "merges": []}})"), "text.json_expected");
  EXPECT_EQ(key_of_text(R"({"model": {"vocab": {"\ud83d\ude00": 0}, "merges": []}})"), "loads");
  EXPECT_EQ(key_of_text(R"({"model": {"vocab": {"a": 1, "a": 2}, "merges": []}})"), "text.vocab_duplicate_token");
  EXPECT_EQ(key_of_text(R"({"model": {"vocab": {}, "vocab": {}, "merges": []}})"), "text.json_duplicate_key");
  EXPECT_EQ(key_of_text(R"({"model": {"vocab": {"a": 99999999999999999999}, "merges": []}})"), "text.json_expected");
  EXPECT_EQ(key_of_text(R"({"model": {"vocab": {}, "merges": []}} x)"), "text.json_expected");
  EXPECT_EQ(key_of_text("{\"x\": " + std::string(100'000, '[')), "text.json_too_deep");
  const std::string whole = dump_json(test::byte_level_json());
  for (std::size_t cut = 0; cut < whole.size(); cut += 97)
    EXPECT_NE(key_of_text(std::string_view(whole).substr(0, cut)), "loads") << cut;
}

TEST(TokenizerFile, LoadSaysWhatIsMissing) {
  const auto folder = Tokenizer::load(fathom::test::fixtures());
  ASSERT_FALSE(folder);
  EXPECT_EQ(folder.error().key, "text.no_tokenizer");
  EXPECT_FALSE(Tokenizer::load("/no/such/place"));
}

}  // namespace
}  // namespace fathom::text
