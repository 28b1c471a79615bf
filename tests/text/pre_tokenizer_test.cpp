// Pieces against those of Hugging Face tokenizers 0.23.2 (tests/fixtures/text/pre_tokenizers.json).
#include "text/pre_tokenizer.h"

#include "support.h"

namespace fathom::text {
namespace {

std::vector<std::string> pieces_of(const PreTokenizer& pre, std::string text) {
  PreTokenizer::Scratch scratch;
  std::vector<Span> spans;
  const Status status = pre.split(text, true, scratch, spans);
  EXPECT_TRUE(status);
  std::vector<std::string> pieces;
  for (const Span& span : spans) {
    const std::string piece = text.substr(span.begin, span.end - span.begin);
    pieces.emplace_back();
    if (pre.pieces_are_bytes())
      append_byte_letters(pieces.back(), piece);
    else
      pieces.back() = piece;
  }
  return pieces;
}

TEST(PreTokenizer, CutsAsHuggingFaceDoes) {
  const Json golden = test::fixture("pre_tokenizers.json");
  ASSERT_GE(golden.size(), 60u);
  for (const Json& entry : golden) {
    const auto pre = PreTokenizer::from_json(entry["pre_tokenizer"]);
    ASSERT_TRUE(pre) << entry["name"] << ": " << test::why(pre);
    for (const Json& one : entry["cases"])
      EXPECT_EQ(pieces_of(*pre, one["text"]), one["pieces"].get<std::vector<std::string>>())
          << entry["name"] << " on " << one["text"];
  }
}

TEST(PreTokenizer, UnknownIsAnErrorThatNamesIt) {
  for (const char* type : {"BertPreTokenizer", "UnicodeScripts", "Nonsense"}) {
    const auto pre = PreTokenizer::from_json({{"type", type}});
    ASSERT_FALSE(pre);
    EXPECT_EQ(pre.error().kind, ErrorKind::kUnsupported);
    EXPECT_NE(test::why(pre).find(type), std::string::npos);
  }
  EXPECT_FALSE(PreTokenizer::from_json({{"type", "Split"}, {"pattern", {{"Regex", "a"}}}, {"behavior", "Sideways"}}));
  EXPECT_FALSE(PreTokenizer::from_json({{"type", "Split"}, {"pattern", {{"Glob", "a"}}}, {"behavior", "Isolated"}}));
  EXPECT_FALSE(PreTokenizer::from_json({{"type", "Metaspace"}, {"replacement", "ab"}}));
  EXPECT_FALSE(PreTokenizer::from_json("Split"));
}

}  // namespace
}  // namespace fathom::text
