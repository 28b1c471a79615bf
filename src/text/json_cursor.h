// A strict forward reader of JSON for files too large for a tree: a vocabulary of 250,000 keys costs one pass and no
// nodes.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fathom::text {

class JsonCursor {
 public:
  /// `text` (valid UTF-8) and `what`, which names it in errors, outlive the cursor.
  JsonCursor(std::string_view text, std::string_view what) : text_(text), what_(what) {}

  /// The next character that is not blank, without taking it; 0 at the end.
  char peek();
  /// Takes `c`. Errors (of all that follows, too): text.json_expected with the byte.
  Status expect(char c);
  /// Takes a string. The view is good until the next call.
  Result<std::string_view> string();
  Result<std::int64_t> integer();
  /// Takes any value, checking its brackets and strings only, and answers its text. Errors: also text.json_too_deep.
  Result<std::string_view> value();
  /// In an array or object: takes the ',' and answers true, or the `close` bracket and answers false.
  /// `first` is true before the first element and is cleared.
  Result<bool> more(char close, bool& first);
  /// Errors unless only blanks are left.
  Status end();

 private:
  tl::unexpected<Error> expected(std::string_view what) const;
  Status skip_string();
  Status escape();

  std::string_view text_, what_;
  std::size_t at_ = 0;
  std::string unescaped_;
};

}  // namespace fathom::text
