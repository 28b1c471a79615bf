// Tokens that are looked for in a text before anything else happens to it: <|im_start|>, <think>, …
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/flat_table.h"
#include "text/normalizer.h"
#include "text/regex.h"

namespace fathom::text {

struct AddedToken {
  std::string content;
  std::int32_t id = -1;
  bool special = false;      // left out of decoded text on request
  bool normalized = false;   // looked for in the normalized text, itself normalized
  bool lstrip = false;       // takes the blanks before it along
  bool rstrip = false;       // takes the blanks behind it along
  bool single_word = false;  // counts only where no letter or digit touches it
  std::string spelled;  // what a decoder is given for it: the content, normalized when the token is; filled by make()
};

/// A stretch of text: an added token (token >= 0 is its number in the list), or what lies between.
struct Section {
  Span span;
  std::int32_t token = -1;
};

class AddedTokens {
 public:
  AddedTokens() = default;
  /// Errors: those of the normalizer.
  static Result<AddedTokens> make(std::vector<AddedToken> tokens, const Normalizer& normalizer);

  const std::vector<AddedToken>& tokens() const { return tokens_; }
  const AddedToken* by_content(std::string_view content) const;
  const AddedToken* by_id(std::int32_t id) const;
  /// Covers `text` with sections, in order, leftmost longest match first; looks for the tokens with `normalized` as
  /// given.
  void find(std::string_view text, bool normalized, std::vector<Section>& out) const;

 private:
  // A byte trie; node 0 is the root.
  struct Trie {
    NumberTable edges;                   // node above byte -> node
    std::vector<std::int32_t> ends{-1};  // by node: the token that ends there
    bool starts[256] = {};               // bytes that some token starts with
    bool empty = true;
    void add(std::string_view text, std::int32_t token);
    /// The longest token at `at`: its number and end, or -1.
    std::int32_t longest(std::string_view text, std::size_t at, std::size_t& end) const;
  };

  std::vector<AddedToken> tokens_;
  StringTable contents_;
  NumberTable by_id_;
  Trie raw_, normalized_;
};

}  // namespace fathom::text
