#include "text/unicode.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "base/strings.h"
#include "text/byte_level.h"

namespace fathom::text {
namespace {

TEST(Unicode, NormalForms) {
  EXPECT_EQ(normalized("e\xCC\x81", NormalForm::kNfc), "é");
  EXPECT_EQ(normalized("é", NormalForm::kNfd), "e\xCC\x81");
  EXPECT_EQ(normalized("ﬁ²", NormalForm::kNfkc), "fi2");
  EXPECT_EQ(normalized("가", NormalForm::kNfd), "\u1100\u1161");
  EXPECT_EQ(normalized("\u1100\u1161\u11a8", NormalForm::kNfc), "각");
  // Marks out of order: below (220) before above (230).
  EXPECT_EQ(normalized("a\u0301\u0323", NormalForm::kNfd), "a\u0323\u0301");
  EXPECT_EQ(normalized("が", NormalForm::kNfc), "が");
  EXPECT_EQ(normalized("か\u3099", NormalForm::kNfc), "が");
}

TEST(Unicode, AbsurdRunsOfMarksAreSortedNotShuffled) {
  std::string marks = "a";
  for (int i = 0; i < 200'000; ++i) marks += i % 2 != 0 ? "\u0323" : "\u0301";
  const std::string sorted = normalized(marks, NormalForm::kNfd);
  EXPECT_EQ(sorted.size(), marks.size());
  EXPECT_EQ(sorted.find("\u0301"), 1 + 200'000u);
}

TEST(Unicode, LossyReplacesEachMaximalPart) {
  const auto lossy = [](std::string_view bytes) {
    std::string out;
    append_lossy(out, bytes);
    return out;
  };
  EXPECT_EQ(lossy("a\xFF"
                  "b"),
            "a\uFFFD"
            "b");
  EXPECT_EQ(lossy("\xE4\xBD"), "\uFFFD");
  EXPECT_EQ(lossy("\xE4\xBD"
                  "a"),
            "\uFFFD"
            "a");
  EXPECT_EQ(lossy("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");  // a surrogate is no character
  EXPECT_EQ(lossy("\xF0\x9F\x98\xE4"), "\uFFFD\uFFFD");
  EXPECT_EQ(lossy("\xC0\x80"), "\uFFFD\uFFFD");
  EXPECT_EQ(lossy("😀"), "😀");
}

TEST(Unicode, IncompleteSuffixIsWhatMayStillBecomeACharacter) {
  EXPECT_EQ(incomplete_suffix("a\xE4\xBD"), 2u);
  EXPECT_EQ(incomplete_suffix("a\xF0\x9F\x98"), 3u);
  EXPECT_EQ(incomplete_suffix("a\xF0"), 1u);
  EXPECT_EQ(incomplete_suffix("\xE4\xBD\xA0"), 0u);
  EXPECT_EQ(incomplete_suffix("\xED\xA0"), 0u);
  EXPECT_EQ(incomplete_suffix("\xFF"), 0u);
  EXPECT_EQ(incomplete_suffix(""), 0u);
}

RC_GTEST_PROP(Unicode, LossyInPiecesIsLossyAtOnce, (const std::string& bytes, unsigned cut)) {
  std::string whole, parts, held;
  append_lossy(whole, bytes);
  const std::size_t at = bytes.empty() ? 0 : cut % bytes.size();
  for (const std::string_view part : {std::string_view(bytes).substr(0, at), std::string_view(bytes).substr(at)}) {
    held += part;
    const std::size_t ready = held.size() - incomplete_suffix(held);
    append_lossy(parts, std::string_view(held).substr(0, ready));
    held.erase(0, ready);
  }
  append_lossy(parts, held);
  RC_ASSERT(parts == whole);
  RC_ASSERT(is_valid_utf8(whole));
}

RC_GTEST_PROP(ByteLevel, LettersSpellEveryByte, (const std::string& bytes)) {
  std::string letters;
  append_byte_letters(letters, bytes);
  RC_ASSERT(is_valid_utf8(letters));
  RC_ASSERT(bytes_of_letters(letters) == bytes);
}

}  // namespace
}  // namespace fathom::text
