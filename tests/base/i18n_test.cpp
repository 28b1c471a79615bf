#include "base/i18n.h"

#include <gtest/gtest.h>

#include <map>
#include <regex>
#include <set>

namespace fathom {
namespace {

std::set<std::string> places(const std::string& text) {
  static const std::regex place(R"(\{([a-z_0-9]+)\})");
  std::set<std::string> names;
  for (auto it = std::sregex_iterator(text.begin(), text.end(), place); it != std::sregex_iterator(); ++it)
    names.insert((*it)[1]);
  return names;
}

TEST(Catalog, BothLanguagesHaveTheSameKeysAndPlaces) {
  const auto english = catalog(Language::kEnglish), chinese = catalog(Language::kChinese);
  std::map<std::string, std::string> other(chinese.begin(), chinese.end());
  for (const auto& [key, text] : english) {
    ASSERT_TRUE(other.count(key)) << key << " has no Chinese text";
    EXPECT_EQ(places(text), places(other[key])) << key;
    other.erase(key);
  }
  for (const auto& [key, text] : other) ADD_FAILURE() << key << " has no English text";
}

TEST(Catalog, PlacesAreFilled) {
  EXPECT_EQ(tr("base.not_a_file", {{"path", "/x"}}), "/x is not a regular file");
  EXPECT_EQ(tr("no.such.key"), "no.such.key");
}

}  // namespace
}  // namespace fathom
