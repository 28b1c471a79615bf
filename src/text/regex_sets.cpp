#include "text/regex_sets.h"

#include <utility>

namespace fathom::text {
namespace {

constexpr std::string_view kSpaceBody =
    R"(\x09-\x0d\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kHexBody = "0-9A-Fa-f";
constexpr std::string_view kPunctBody = R"(\p{P}$+<=>^`|~)";

}  // namespace

std::optional<std::string_view> shorthand_set(char letter, bool& negated) {
  negated = letter >= 'A' && letter <= 'Z';
  switch (letter) {
    case 's':
    case 'S':
      return kSpaceBody;
    case 'd':
    case 'D':
      return R"(\p{Nd})";
    case 'w':
    case 'W':
      return kWordSet;
    case 'h':
    case 'H':
      return kHexBody;
    default:
      return std::nullopt;
  }
}

std::optional<std::string_view> named_set(std::string_view name) {
  static constexpr std::pair<std::string_view, std::string_view> table[] = {{"alpha", R"(\p{Alphabetic})"},
                                                                            {"alphabetic", R"(\p{Alphabetic})"},
                                                                            {"digit", R"(\p{Nd})"},
                                                                            {"alnum", R"(\p{Alphabetic}\p{Nd})"},
                                                                            {"upper", R"(\p{Uppercase})"},
                                                                            {"lower", R"(\p{Lowercase})"},
                                                                            {"space", kSpaceBody},
                                                                            {"whitespace", kSpaceBody},
                                                                            {"punct", kPunctBody},
                                                                            {"xdigit", kHexBody},
                                                                            {"word", kWordSet},
                                                                            {"ascii", R"(\x00-\x7f)"},
                                                                            {"blank", R"(\x09\p{Zs})"},
                                                                            {"any", R"(\x00-\x{10ffff})"},
                                                                            {"letter", R"(\p{L})"},
                                                                            {"uppercaseletter", R"(\p{Lu})"},
                                                                            {"lowercaseletter", R"(\p{Ll})"},
                                                                            {"titlecaseletter", R"(\p{Lt})"},
                                                                            {"modifierletter", R"(\p{Lm})"},
                                                                            {"otherletter", R"(\p{Lo})"},
                                                                            {"mark", R"(\p{M})"},
                                                                            {"nonspacingmark", R"(\p{Mn})"},
                                                                            {"spacingmark", R"(\p{Mc})"},
                                                                            {"enclosingmark", R"(\p{Me})"},
                                                                            {"number", R"(\p{N})"},
                                                                            {"decimalnumber", R"(\p{Nd})"},
                                                                            {"letternumber", R"(\p{Nl})"},
                                                                            {"othernumber", R"(\p{No})"},
                                                                            {"punctuation", R"(\p{P})"},
                                                                            {"connectorpunctuation", R"(\p{Pc})"},
                                                                            {"dashpunctuation", R"(\p{Pd})"},
                                                                            {"openpunctuation", R"(\p{Ps})"},
                                                                            {"closepunctuation", R"(\p{Pe})"},
                                                                            {"otherpunctuation", R"(\p{Po})"},
                                                                            {"symbol", R"(\p{S})"},
                                                                            {"mathsymbol", R"(\p{Sm})"},
                                                                            {"currencysymbol", R"(\p{Sc})"},
                                                                            {"modifiersymbol", R"(\p{Sk})"},
                                                                            {"othersymbol", R"(\p{So})"},
                                                                            {"separator", R"(\p{Z})"},
                                                                            {"spaceseparator", R"(\p{Zs})"},
                                                                            {"lineseparator", R"(\p{Zl})"},
                                                                            {"paragraphseparator", R"(\p{Zp})"},
                                                                            {"other", R"(\p{C})"},
                                                                            {"control", R"(\p{Cc})"},
                                                                            {"format", R"(\p{Cf})"},
                                                                            {"unassigned", R"(\p{Cn})"}};
  for (const auto& [key, body] : table)
    if (key == name) return body;
  return std::nullopt;
}

bool is_general_category(std::string_view name) {
  constexpr std::string_view majors = "lmnpszc";
  if (name.empty() || name.size() > 2 || majors.find(name[0]) == std::string_view::npos) return false;
  return name.size() == 1 || std::string_view("ultmoncdsekipf").find(name[1]) != std::string_view::npos;
}

bool is_boolean_property(std::string_view name) {
  static constexpr std::string_view known[] = {
      "uppercase",         "lowercase",     "whitespace",           "dash",        "diacritic", "emoji",
      "emojipresentation", "emojimodifier", "extendedpictographic", "ideographic", "math",      "idstart",
      "idcontinue",        "quotationmark"};
  for (const auto one : known)
    if (one == name) return true;
  return false;
}

}  // namespace fathom::text
