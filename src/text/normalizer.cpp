#include "text/normalizer.h"

#include <utility>

#include "base/json.h"
#include "base/units.h"
#include "text/byte_level.h"
#include "text/fields.h"
#include "text/unicode.h"

namespace fathom::text {
namespace {

constexpr std::string_view kNormalizerPart = "normalizer";
constexpr std::string_view kKnownNormalizers =
    "NFC, NFD, NFKC, NFKD, Lowercase, Replace, Prepend, Strip, ByteLevel, Sequence";
constexpr std::size_t kMaxBytes = std::size_t{1} << 30;

Status check_size(std::size_t bytes) {
  if (bytes > kMaxBytes)
    return fail("text.too_long", {{"size", format_bytes(bytes)}, {"limit", format_bytes(kMaxBytes)}});
  return {};
}

void strip(std::string& text, bool left, bool right) {
  std::size_t begin = 0, end = text.size();
  if (left)
    for (std::size_t next = 0; next < end && is_white_space(next_char(text, next));) begin = next;
  if (right) {
    while (end > begin) {
      std::size_t at = char_start_before(text, end);
      const std::size_t start = at;
      if (!is_white_space(next_char(text, at))) break;
      end = start;
    }
  }
  text = text.substr(begin, end - begin);
}

}  // namespace

Result<std::string> replace_all(std::string_view text, const Regex& pattern, std::string_view replacement,
                                RegexScratch& scratch) {
  std::vector<Span> matches;
  FATHOM_TRY_VOID(pattern.find_all(text, scratch, matches));
  std::uint64_t grown = 0;
  if (!checked_mul(matches.size(), replacement.size(), grown) || !checked_add(grown, text.size(), grown))
    grown = ~std::uint64_t{0};
  FATHOM_TRY_VOID(check_size(grown));
  std::string out;
  out.reserve(grown);
  std::size_t at = 0;
  for (const Span& match : matches) {
    out += text.substr(at, match.begin - at);
    out += replacement;
    at = match.end;
  }
  out += text.substr(at);
  return out;
}

Result<Normalizer> Normalizer::from_json(const Json& node) {
  Normalizer normalizer;
  if (!node.is_null()) FATHOM_TRY_VOID(normalizer.add(node));
  return normalizer;
}

Status Normalizer::add(const Json& node) {
  FATHOM_TRY(const std::string type, type_of(node, kNormalizerPart));
  static constexpr std::pair<std::string_view, Kind> plain[] = {{"NFC", Kind::kNfc},
                                                                {"NFD", Kind::kNfd},
                                                                {"NFKC", Kind::kNfkc},
                                                                {"NFKD", Kind::kNfkd},
                                                                {"Lowercase", Kind::kLowercase},
                                                                {"ByteLevel", Kind::kByteLevel}};
  for (const auto& [name, kind] : plain) {
    if (type != name) continue;
    steps_.push_back({kind, {}, {}});
    return {};
  }
  if (type == "Sequence") {
    FATHOM_TRY(const Json* parts, array_field(node, kNormalizerPart, "normalizers"));
    for (const Json& part : *parts) FATHOM_TRY_VOID(add(part));
  } else if (type == "Replace") {
    FATHOM_TRY(Regex pattern, pattern_field(node, kNormalizerPart, "pattern"));
    FATHOM_TRY(std::string content, string_field(node, kNormalizerPart, "content"));
    steps_.push_back({Kind::kReplace, std::move(content), std::move(pattern)});
  } else if (type == "Prepend") {
    FATHOM_TRY(std::string text, string_field(node, kNormalizerPart, "prepend"));
    steps_.push_back({Kind::kPrepend, std::move(text), {}});
  } else if (type == "Strip") {
    FATHOM_TRY(const bool left, bool_field(node, kNormalizerPart, "strip_left", false));
    FATHOM_TRY(const bool right, bool_field(node, kNormalizerPart, "strip_right", false));
    steps_.push_back({Kind::kStrip, {}, {}, left, right});
  } else {
    return unknown_type(kNormalizerPart, type, kKnownNormalizers);
  }
  return {};
}

Status Normalizer::apply(std::string& text, RegexScratch& scratch) const {
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kNfc:
        text = normalized(text, NormalForm::kNfc);
        break;
      case Kind::kNfd:
        text = normalized(text, NormalForm::kNfd);
        break;
      case Kind::kNfkc:
        text = normalized(text, NormalForm::kNfkc);
        break;
      case Kind::kNfkd:
        text = normalized(text, NormalForm::kNfkd);
        break;
      case Kind::kLowercase:
        text = lowercased(text);
        break;
      case Kind::kStrip:
        strip(text, step.left, step.right);
        break;
      case Kind::kPrepend:
        if (!text.empty()) text.insert(0, step.text);
        break;
      case Kind::kByteLevel: {
        std::string letters;
        append_byte_letters(letters, text);
        text = std::move(letters);
        break;
      }
      case Kind::kReplace: {
        FATHOM_TRY(text, replace_all(text, step.pattern, step.text, scratch));
        break;
      }
    }
    FATHOM_TRY_VOID(check_size(text.size()));
  }
  return {};
}

}  // namespace fathom::text
