#include "text/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "base/json.h"
#include "text/byte_level.h"
#include "text/fields.h"
#include "text/unicode.h"

namespace fathom::text {
namespace {

constexpr std::string_view kPreTokenizerPart = "pre_tokenizer";
constexpr std::string_view kKnownPreTokenizers =
    "Sequence, Split, ByteLevel, Digits, Punctuation, Whitespace, WhitespaceSplit, Metaspace";
// The expression of ByteLevel's use_regex, from GPT-2.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Every character of `text` that `is` accepts, as a match of its own.
template <class Predicate>
void match_each(std::string_view text, Predicate is, std::vector<Span>& out) {
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    if (is(next_char(text, i))) out.push_back({start, i});
  }
}

// Runs of word characters, and runs of what is neither that nor white space.
void match_words(std::string_view text, std::vector<Span>& out) {
  int previous = 0;  // 0 blank, 1 word, 2 other
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t start = i;
    const char32_t c = next_char(text, i);
    const int kind = is_word(c) ? 1 : is_white_space(c) ? 0 : 2;
    if (kind != 0 && kind == previous)
      out.back().end = i;
    else if (kind != 0)
      out.push_back({start, i});
    previous = kind;
  }
}

}  // namespace

Result<PreTokenizer> PreTokenizer::from_json(const Json& node) {
  PreTokenizer pre;
  if (!node.is_null()) FATHOM_TRY_VOID(pre.add(node));
  if (!pre.steps_.empty() && pre.steps_.back().kind == Kind::kByteLetters) {
    pre.steps_.pop_back();
    pre.pieces_are_bytes_ = true;
  }
  return pre;
}

Status PreTokenizer::add(const Json& node) {
  FATHOM_TRY(const std::string type, type_of(node, kPreTokenizerPart));
  if (type == "Sequence") {
    FATHOM_TRY(const Json* parts, array_field(node, kPreTokenizerPart, "pretokenizers"));
    for (const Json& part : *parts) FATHOM_TRY_VOID(add(part));
    return {};
  }
  if (type == "Split") return add_split(node);
  if (type == "ByteLevel") return add_byte_level(node);
  if (type == "Metaspace") return add_metaspace(node);
  if (type == "Digits") {
    FATHOM_TRY(const bool each, bool_field(node, kPreTokenizerPart, "individual_digits", false));
    steps_.push_back({.kind = Kind::kDigits, .behavior = each ? Behavior::kIsolated : Behavior::kContiguous});
  } else if (type == "Punctuation") {
    FATHOM_TRY(const Behavior behavior, behavior_field(node, false));
    steps_.push_back({.kind = Kind::kPunctuation, .behavior = behavior});
  } else if (type == "Whitespace") {
    steps_.push_back({.kind = Kind::kWhitespace, .behavior = Behavior::kRemoved, .invert = true});
  } else if (type == "WhitespaceSplit") {
    steps_.push_back({.kind = Kind::kWhitespaceSplit, .behavior = Behavior::kRemoved});
  } else {
    return unknown_type(kPreTokenizerPart, type, kKnownPreTokenizers);
  }
  return {};
}

Result<PreTokenizer::Behavior> PreTokenizer::behavior_field(const Json& node, bool required) {
  if (!required && !node.contains("behavior")) return Behavior::kIsolated;
  FATHOM_TRY(const std::string name, string_field(node, kPreTokenizerPart, "behavior"));
  static constexpr std::pair<std::string_view, Behavior> known[] = {
      {"Isolated", Behavior::kIsolated},
      {"Removed", Behavior::kRemoved},
      {"Contiguous", Behavior::kContiguous},
      {"MergedWithPrevious", Behavior::kMergedWithPrevious},
      {"MergedWithNext", Behavior::kMergedWithNext}};
  for (const auto& [text, behavior] : known)
    if (name == text) return behavior;
  return bad_field(kPreTokenizerPart, "behavior");
}

Status PreTokenizer::add_split(const Json& node) {
  FATHOM_TRY(Regex pattern, pattern_field(node, kPreTokenizerPart, "pattern"));
  FATHOM_TRY(const Behavior behavior, behavior_field(node, true));
  FATHOM_TRY(const bool invert, bool_field(node, kPreTokenizerPart, "invert", false));
  steps_.push_back({.kind = Kind::kSplit, .pattern = std::move(pattern), .behavior = behavior, .invert = invert});
  return {};
}

Status PreTokenizer::add_byte_level(const Json& node) {
  FATHOM_TRY(const bool prefix, bool_field(node, kPreTokenizerPart, "add_prefix_space", true));
  FATHOM_TRY(const bool use_regex, bool_field(node, kPreTokenizerPart, "use_regex", true));
  if (prefix) steps_.push_back({.kind = Kind::kPrefixSpace});
  if (use_regex) {
    FATHOM_TRY(Regex pattern, Regex::compile(kGpt2Pattern));
    steps_.push_back({.kind = Kind::kSplit, .pattern = std::move(pattern)});
  }
  steps_.push_back({.kind = Kind::kByteLetters});
  return {};
}

Status PreTokenizer::add_metaspace(const Json& node) {
  FATHOM_TRY(std::string replacement, char_field(node, kPreTokenizerPart, "replacement"));
  FATHOM_TRY(const bool add_prefix, bool_field(node, kPreTokenizerPart, "add_prefix_space", true));
  FATHOM_TRY(const bool cut, bool_field(node, kPreTokenizerPart, "split", true));
  std::string scheme = "always";
  if (node.contains("prepend_scheme")) {
    FATHOM_TRY(scheme, string_field(node, kPreTokenizerPart, "prepend_scheme"));
  } else if (!add_prefix) {
    scheme = "never";
  }
  if (scheme != "always" && scheme != "first" && scheme != "never")
    return bad_field(kPreTokenizerPart, "prepend_scheme");
  if (!add_prefix && scheme != "never") return bad_field(kPreTokenizerPart, "add_prefix_space");
  const Prepend prepend = scheme == "always" ? Prepend::kAlways : scheme == "first" ? Prepend::kFirst : Prepend::kNever;
  steps_.push_back({.kind = Kind::kMetaspace, .replacement = replacement, .prepend = prepend});
  if (cut) {
    FATHOM_TRY(Regex pattern, Regex::literal(replacement));
    steps_.push_back({.kind = Kind::kSplit, .pattern = std::move(pattern), .behavior = Behavior::kMergedWithNext});
  }
  return {};
}

Status PreTokenizer::split(std::string& text, bool opens_input, Scratch& scratch, std::vector<Span>& pieces) const {
  pieces.clear();
  if (text.empty()) return {};
  pieces.push_back({0, text.size()});
  for (const Step& step : steps_) FATHOM_TRY_VOID(run(step, text, opens_input, scratch, pieces));
  return {};
}

Status PreTokenizer::run(const Step& step, std::string& text, bool opens_input, Scratch& scratch,
                         std::vector<Span>& pieces) {
  if (step.kind == Kind::kPrefixSpace || step.kind == Kind::kByteLetters || step.kind == Kind::kMetaspace) {
    rewrite(step, text, opens_input, scratch, pieces);
    return {};
  }
  scratch.next.clear();
  for (const Span& piece : pieces) {
    const std::string_view view = std::string_view(text).substr(piece.begin, piece.end - piece.begin);
    scratch.matches.clear();
    switch (step.kind) {
      case Kind::kSplit:
        FATHOM_TRY_VOID(step.pattern.find_all(view, scratch.regex, scratch.matches));
        break;
      case Kind::kDigits:
        match_each(view, is_numeric, scratch.matches);
        break;
      case Kind::kPunctuation:
        match_each(view, is_punctuation, scratch.matches);
        break;
      case Kind::kWhitespaceSplit:
        match_each(view, is_white_space, scratch.matches);
        break;
      case Kind::kWhitespace:
        match_words(view, scratch.matches);
        break;
      default:
        FATHOM_CHECK(false, "rewriting steps are done above");
    }
    cut(view, piece, step, scratch.matches, scratch.next);
  }
  pieces.swap(scratch.next);
  return {};
}

// Appends to `out` what `step` makes of a piece with these matches (relative to the piece).
void PreTokenizer::cut(std::string_view text, Span piece, const Step& step, const std::vector<Span>& matches,
                       std::vector<Span>& out) {
  const std::size_t first = out.size();
  bool previous = false;  // whether the part before was a match
  // Parts come in order and cover the text; an empty match is a part, too, and separates its neighbours.
  const auto part = [&](std::size_t begin, std::size_t end, bool match) {
    match ^= step.invert;
    const Span span{piece.begin + begin, piece.begin + end};
    bool join = false;
    switch (step.behavior) {
      case Behavior::kIsolated:
        break;
      case Behavior::kRemoved:
        if (match) return;
        break;
      case Behavior::kContiguous:
        join = match == previous;
        break;
      case Behavior::kMergedWithPrevious:
        join = match && !previous;
        break;
      case Behavior::kMergedWithNext:
        break;  // below, from the end
    }
    previous = match;
    if (join && out.size() > first)
      out.back().end = span.end;
    else
      out.push_back(span);
  };
  std::vector<bool> is_match;
  const bool from_end = step.behavior == Behavior::kMergedWithNext;
  std::size_t at = 0;
  for (const Span& match : matches) {
    if (at != match.begin) {
      part(at, match.begin, false);
      if (from_end) is_match.push_back(step.invert);
    }
    part(match.begin, match.end, true);
    if (from_end) is_match.push_back(!step.invert);
    at = match.end;
  }
  if (at != text.size()) {
    part(at, text.size(), false);
    if (from_end) is_match.push_back(step.invert);
  }
  if (from_end) {  // a match joins what follows it, unless that is a match, too
    std::size_t kept = out.size();
    bool next = false;
    for (std::size_t i = is_match.size(); i-- > 0;) {
      const Span span = out[first + i];
      if (is_match[i] && !next && kept < out.size())
        out[kept].begin = span.begin;
      else
        out[--kept] = span;
      next = is_match[i];
    }
    out.erase(out.begin() + static_cast<std::ptrdiff_t>(first), out.begin() + static_cast<std::ptrdiff_t>(kept));
  }
  out.erase(std::remove_if(out.begin() + static_cast<std::ptrdiff_t>(first), out.end(),
                           [](const Span& s) { return s.begin == s.end; }),
            out.end());
}

// Steps that change characters: the text is written anew, piece by piece.
void PreTokenizer::rewrite(const Step& step, std::string& text, bool opens_input, Scratch& scratch,
                           std::vector<Span>& pieces) {
  std::string& out = scratch.text;
  out.clear();
  out.reserve(text.size() + text.size() / 2 + pieces.size());
  for (Span& piece : pieces) {
    const std::string_view view = std::string_view(text).substr(piece.begin, piece.end - piece.begin);
    const bool first = opens_input && piece.begin == 0;
    piece.begin = out.size();
    if (step.kind == Kind::kByteLetters) {
      append_byte_letters(out, view);
    } else if (step.kind == Kind::kPrefixSpace) {
      if (!view.starts_with(' ')) out += ' ';
      out += view;
    } else {
      const bool wanted = step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && first);
      if (wanted && !view.starts_with(' ') && !view.starts_with(step.replacement)) out += step.replacement;
      for (const char c : view) {
        if (c == ' ')
          out += step.replacement;
        else
          out += c;
      }
    }
    piece.end = out.size();
  }
  text.swap(out);
}

}  // namespace fathom::text
