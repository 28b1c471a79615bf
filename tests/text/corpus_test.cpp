// Every input that the fuzzers found worth keeping is replayed, so that ordinary tests hold what fuzzing has shown.
#include "fuzz_input.h"
#include "support.h"

namespace fathom::text {
namespace {

std::size_t replay(std::string_view kind, void (*one)(std::string_view)) {
  std::size_t replayed = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator(fathom::test::fixtures() / ".." / "fuzz" / "corpus" / kind)) {
    const auto input = read_file(entry.path(), 16u << 20);
    EXPECT_TRUE(input) << entry.path();
    if (input) one(*input);
    ++replayed;
  }
  return replayed;
}

TEST(Corpus, TokenizerInputsAreSurvived) { EXPECT_GE(replay("tokenizer", test::fuzz_tokenizer), 8u); }
TEST(Corpus, TemplateInputsAreSurvived) { EXPECT_GE(replay("template", test::fuzz_template), 8u); }

}  // namespace
}  // namespace fathom::text
