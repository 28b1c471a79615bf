// Regular expressions over valid UTF-8, with the matches that Hugging Face tokenizers find (Oniguruma, leftmost,
// backtracking).
#pragma once
#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fathom::text {

/// Bytes [begin, end) of a text.
struct Span {
  std::size_t begin = 0, end = 0;
  bool operator==(const Span&) const = default;
};

/// What a search needs for itself; one a thread, reused for any number of searches.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

/// A compiled expression or literal. Immutable: any number of threads may search with it at once.
class Regex {
 public:
  /// Errors: text.regex_unsupported (a construct without an equivalent), text.regex_invalid (with the place).
  static Result<Regex> compile(std::string_view pattern);
  /// Matches `text` itself. An empty one matches between all characters, as the empty expression does.
  static Result<Regex> literal(std::string_view text);

  /// All matches in `text`, left to right, without overlap; an empty match never touches the match before it.
  /// Replaces `out`. Errors: text.regex_limit when the expression backtracks beyond all measure.
  Status find_all(std::string_view text, RegexScratch& scratch, std::vector<Span>& out) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace fathom::text
