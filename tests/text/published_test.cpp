// Published tokenizers, fetched by tools/fetch_tokenizers, against what Hugging Face tokenizers and transformers make
// of the same texts and conversations (tests/fixtures/text/expected).
#include <cstdlib>

#include "support.h"
#include "text/chat_template.h"

namespace fathom::text {
namespace {

class Published : public ::testing::TestWithParam<const char*> {};

TEST_P(Published, EncodesDecodesAndRendersTheSame) {
  const char* given = std::getenv("FATHOM_TOKENIZERS");
  const Path folder =
      (given != nullptr && *given != '\0' ? Path(given) : Path(FATHOM_SOURCE_DIR) / "build" / "tokenizers") /
      GetParam();
  if (!std::filesystem::exists(folder / "tokenizer.json"))
    GTEST_SKIP() << folder << " is not there: run tools/fetch_tokenizers, or set FATHOM_TOKENIZERS";
  const auto tokenizer = Tokenizer::load(folder);
  ASSERT_TRUE(tokenizer) << test::why(tokenizer);
  const auto chat = ChatTemplate::load(folder);
  ASSERT_TRUE(chat) << test::why(chat);
  const Json expected = test::fixture(std::string("expected/") + GetParam() + ".json");
  ASSERT_EQ(expected.size(), 152u);
  for (const Json& one : expected) {
    if (one.contains("messages")) {
      const auto rendered =
          chat->render(Json{{"messages", one["messages"]}, {"add_generation_prompt", one["add_generation_prompt"]}});
      EXPECT_EQ(rendered.value_or(test::why(rendered)), one["rendered"].get<std::string>());
      continue;
    }
    const std::string text = one["text"], decoded = one.value("decoded", text);
    const auto ids = tokenizer->encode(text);
    ASSERT_TRUE(ids) << test::why(ids);
    EXPECT_EQ(*ids, one["ids"].get<std::vector<std::int32_t>>()) << text;
    EXPECT_EQ(tokenizer->decode(*ids), decoded);
    StreamDecoder stream = tokenizer->stream();
    std::string streamed;
    for (const std::int32_t id : *ids) streamed += stream.push(id);
    EXPECT_EQ(streamed + stream.finish(), decoded);
  }
}

INSTANTIATE_TEST_SUITE_P(Text, Published, ::testing::Values("deepseek_v3", "qwen3", "llama3_1"));

}  // namespace
}  // namespace fathom::text
