// What a tokenizer does to a text before it cuts it up.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "text/regex.h"

namespace fathom::text {

class Normalizer {
 public:
  /// From the "normalizer" of a tokenizer.json; null leaves texts as they are.
  /// Errors: text.unknown_type (NFC, NFD, NFKC, NFKD, Lowercase, Replace, Prepend, Strip, ByteLevel, Sequence are
  /// known), text.bad_field, those of Regex.
  static Result<Normalizer> from_json(const nlohmann::ordered_json& node);
  bool changes_nothing() const { return steps_.empty(); }
  /// Errors: text.regex_limit; text.too_long beyond 1 GiB.
  Status apply(std::string& text, RegexScratch& scratch) const;

 private:
  enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kLowercase, kReplace, kPrepend, kStrip, kByteLevel };
  struct Step {
    Kind kind;
    std::string text;                  // kReplace: what comes instead; kPrepend: what comes first
    Regex pattern;                     // kReplace
    bool left = false, right = false;  // kStrip
  };
  Status add(const nlohmann::ordered_json& node);

  std::vector<Step> steps_;
};

/// `text` with every match of `pattern` replaced. Errors: text.regex_limit; text.too_long beyond 1 GiB.
Result<std::string> replace_all(std::string_view text, const Regex& pattern, std::string_view replacement,
                                RegexScratch& scratch);

}  // namespace fathom::text
