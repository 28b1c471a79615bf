// Sets of characters that a regular expression can name, as the bodies of PCRE2 classes (what stands between brackets).
#pragma once
#include <optional>
#include <string_view>

namespace fathom::text {

/// The set of a shorthand (\s, \d, \w, \h), or nullopt when `letter` is none; `negated` for the capital letter.
std::optional<std::string_view> shorthand_set(char letter, bool& negated);
/// [:name:], \p{name} for POSIX names, and general categories by their long names, in lower case without blanks, '_'
/// and '-'.
std::optional<std::string_view> named_set(std::string_view name);
/// "l", "lu", "nd", …
bool is_general_category(std::string_view name);
/// Names that are boolean properties, not scripts.
bool is_boolean_property(std::string_view name);

/// What \w means in a class; outside, Oniguruma's also takes Latin-1's superscript digits and fractions.
inline constexpr std::string_view kWordSet = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
inline constexpr std::string_view kLatin1WordSet = R"(\xb2\xb3\xb9\xbc-\xbe)";

}  // namespace fathom::text
