// Cuts a normalized text into the pieces that the model encodes one by one.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "text/regex.h"

namespace fathom::text {

class PreTokenizer {
 public:
  struct Scratch {
    RegexScratch regex;
    std::vector<Span> matches, next;
    std::string text;
  };

  /// From the "pre_tokenizer" of a tokenizer.json; null leaves a text in one piece. Errors: text.unknown_type
  /// (Sequence, Split, ByteLevel, Digits, Punctuation, Whitespace, WhitespaceSplit, Metaspace are known),
  /// text.bad_field, those of Regex.
  static Result<PreTokenizer> from_json(const nlohmann::ordered_json& node);

  /// Whether the last step is ByteLevel. It is then left out: pieces stay raw bytes, and the model reads them so.
  bool pieces_are_bytes() const { return pieces_are_bytes_; }
  /// Replaces `pieces` by the non-empty pieces of `text`, in order, as spans of `text`, which steps may rewrite.
  /// `opens_input`: `text` begins where the whole input does. Errors: text.regex_limit.
  Status split(std::string& text, bool opens_input, Scratch& scratch, std::vector<Span>& pieces) const;

 private:
  enum class Kind {
    kSplit,
    kPrefixSpace,
    kByteLetters,
    kDigits,
    kPunctuation,
    kWhitespace,
    kWhitespaceSplit,
    kMetaspace
  };
  enum class Behavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kFirst, kAlways, kNever };
  struct Step {
    Kind kind;
    Regex pattern{};  // kSplit
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;                // kSplit: what lies between matches is the match
    std::string replacement{};          // kMetaspace: the character for a space
    Prepend prepend = Prepend::kNever;  // kMetaspace
  };
  Status add(const nlohmann::ordered_json& node);
  Status add_split(const nlohmann::ordered_json& node);
  Status add_byte_level(const nlohmann::ordered_json& node);
  Status add_metaspace(const nlohmann::ordered_json& node);
  static Result<Behavior> behavior_field(const nlohmann::ordered_json& node, bool required);
  static Status run(const Step& step, std::string& text, bool opens_input, Scratch& scratch, std::vector<Span>& pieces);
  static void rewrite(const Step& step, std::string& text, bool opens_input, Scratch& scratch,
                      std::vector<Span>& pieces);
  static void cut(std::string_view text, Span piece, const Step& step, const std::vector<Span>& matches,
                  std::vector<Span>& out);

  std::vector<Step> steps_;
  bool pieces_are_bytes_ = false;
};

}  // namespace fathom::text
