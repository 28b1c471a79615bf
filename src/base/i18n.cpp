#include "base/i18n.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>

#include "base/embedded.h"
#include "base/json.h"
#include "base/strings.h"

namespace fathom {
namespace {

using Catalog = std::map<std::string, std::string, std::less<>>;

std::string_view folder(Language language) { return language == Language::kChinese ? "lang/zh/" : "lang/en/"; }

Catalog load(Language language) {
  Catalog texts;
  for (const EmbeddedFile& file : embedded_files()) {
    if (!file.path.starts_with(folder(language))) continue;
    auto json = parse_json(file.contents, file.path);
    FATHOM_CHECK(json && json->is_object(), file.path);
    for (const auto& [key, text] : json->items()) {
      FATHOM_CHECK(text.is_string(), key);
      const bool fresh = texts.emplace(key, text.get<std::string>()).second;
      FATHOM_CHECK(fresh, key);
    }
  }
  return texts;
}

const Catalog& texts(Language language) {
  static const std::array<Catalog, 2> catalogs = {load(Language::kEnglish), load(Language::kChinese)};
  return catalogs[language == Language::kChinese ? 1 : 0];
}

Language current = Language::kEnglish;

}  // namespace

void set_language(Language language) { current = language; }
Language language() { return current; }

Language language_from_environment() {
  for (const char* name : {"LC_ALL", "LC_MESSAGES", "LANG"}) {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    return to_lower(value).starts_with("zh") ? Language::kChinese : Language::kEnglish;
  }
  return Language::kEnglish;
}

Result<Language> parse_language(std::string_view name) {
  const std::string lower = to_lower(name);
  if (lower == "en" || lower.starts_with("en_") || lower.starts_with("en-")) return Language::kEnglish;
  if (lower == "zh" || lower.starts_with("zh_") || lower.starts_with("zh-")) return Language::kChinese;
  return fail("base.unknown_language", {{"name", printable(name)}});
}

std::string tr(std::string_view key, const TextArgs& args) {
  const Catalog& catalog = texts(current);
  const auto found = catalog.find(key);
  if (found == catalog.end()) return std::string(key);
  const std::string& text = found->second;
  std::string out;
  out.reserve(text.size() + 32);
  for (std::size_t i = 0; i < text.size();) {
    if (text[i] == '{') {
      const std::size_t close = text.find('}', i);
      if (close != std::string::npos) {
        const std::string_view name(text.data() + i + 1, close - i - 1);
        const auto arg = std::find_if(args.begin(), args.end(), [&](const auto& a) { return a.first == name; });
        if (arg != args.end()) {
          out += arg->second;
          i = close + 1;
          continue;
        }
      }
    }
    out += text[i++];
  }
  return out;
}

std::vector<std::pair<std::string, std::string>> catalog(Language language) {
  const Catalog& all = texts(language);
  return {all.begin(), all.end()};
}

}  // namespace fathom
