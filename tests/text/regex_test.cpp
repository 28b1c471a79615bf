#include "text/regex.h"

#include "support.h"
#include "text/regex_syntax.h"

namespace fathom::text {
namespace {

std::vector<Span> matches(std::string_view pattern, std::string_view text) {
  const auto regex = Regex::compile(pattern);
  EXPECT_TRUE(regex) << test::why(regex);
  RegexScratch scratch;
  std::vector<Span> out;
  if (regex) EXPECT_TRUE(regex->find_all(text, scratch, out));
  return out;
}

TEST(Regex, EmptyMatchesNeverTouchTheMatchBefore) {
  EXPECT_EQ(matches("b*", "abb"), (std::vector<Span>{{0, 0}, {1, 3}}));
  EXPECT_EQ(matches("", "é"), (std::vector<Span>{{0, 0}, {2, 2}}));
  EXPECT_EQ(matches("a", ""), (std::vector<Span>{}));
}

TEST(Regex, LiteralsAreNotExpressions) {
  const auto literal = Regex::literal("a.c");
  ASSERT_TRUE(literal);
  RegexScratch scratch;
  std::vector<Span> out;
  ASSERT_TRUE(literal->find_all("abca.ca.c", scratch, out));
  EXPECT_EQ(out, (std::vector<Span>{{3, 6}, {6, 9}}));
}

TEST(Regex, WhatHasNoEquivalentIsNamed) {
  for (const std::string pattern : {"\\M-a", "\\g<1>", "\\k<x>", "(?y)a", "(?<", "\\p{", "[a", "(a", "a)", "\\xZZ",
                                    "*a", "[\\W]", "\\p{^punctuation2}", "[z-a]"}) {
    const auto regex = Regex::compile(pattern);
    ASSERT_FALSE(regex) << pattern;
    EXPECT_NE(test::why(regex).find(pattern.substr(0, 1)), std::string::npos) << pattern;
  }
  EXPECT_FALSE(Regex::compile(std::string(100'000, 'a')));
  EXPECT_FALSE(Regex::compile(std::string(500, '(') + std::string(500, ')')));
}

TEST(Regex, GivesUpInsteadOfHanging) {
  const auto regex = Regex::compile("(a|a?)+(a|a?)+(a|a?)+c$");
  ASSERT_TRUE(regex) << test::why(regex);
  RegexScratch scratch;
  std::vector<Span> out;
  const Status status = regex->find_all(std::string(2000, 'a') + "cb", scratch, out);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().key, "text.regex_limit");
}

TEST(Regex, LongRunsArePlainWork) {
  const std::string spaces(3'000'000, ' ');
  EXPECT_EQ(matches(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", spaces).size(), 1u);
  EXPECT_EQ(matches(R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})", std::string(3'000'000, 'a')).size(), 1u);
}

}  // namespace
}  // namespace fathom::text
