// Texts for people, in English and Chinese. Every sentence lives in data/lang/<language>/<room>.json as "key": "text",
// where {name} places are filled by the caller; logic names keys only. A test holds both languages against each other.
#pragma once
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace fathom {

enum class Language { kEnglish, kChinese };

/// The language that tr() answers in. Set once at start from --lang or the locale; English until then.
void set_language(Language language);
Language language();
/// From LC_ALL, LC_MESSAGES, LANG in that order: zh* is Chinese, all else English.
Language language_from_environment();
Result<Language> parse_language(std::string_view name);

using TextArgs = std::vector<std::pair<std::string_view, std::string>>;
/// The text of `key` with its {name} places filled. An unknown key answers the key itself, so that a missing text is
/// seen.
std::string tr(std::string_view key, const TextArgs& args = {});

/// The catalog of one language, sorted by key (for the test that compares languages).
std::vector<std::pair<std::string, std::string>> catalog(Language language);

}  // namespace fathom
